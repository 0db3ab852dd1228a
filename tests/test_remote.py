"""A model on another machine: its passes run there, and give the numbers of a model that is here."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nnsight
import numpy as np
import pytest
import torch
from conftest import tiny_llama
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteBackend

import tracer
from tracer.errors import ModelSourceError

FACT = tracer.Fact("The capital of France is", "France")
OPTIONS = {"samples": 2, "window": 2, "severed": ("mlp", "attn"), "engine": "passes"}


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("far") / "llama"
    tiny_llama().save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen]:
    """A process without `tracer` in place of NDIF: it gets the bytes that NDIF would get."""
    command = [sys.executable, str(Path(__file__).with_name("far_machine.py")), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as there:

        def request(backend: RemoteBackend, _request, block) -> dict:
            payload = backend._serialize(block)
            there.stdin.write(len(payload).to_bytes(8, "big") + payload)
            there.stdin.flush()
            size = int.from_bytes(there.stdout.read(8), "big")
            return torch.load(io.BytesIO(there.stdout.read(size)))

        monkeypatch.setattr(RemoteBackend, "request", request)
        monkeypatch.setattr(nnsight.TransformersModel, "to_model_key", lambda self: "key")  # which asks the hub
        monkeypatch.setattr(CONFIG.API, "APIKEY", "a key")
        monkeypatch.setattr(nnsight, "status", lambda: {str(folder): {}})
        yield there
        there.stdin.close()


def assert_same(found: tracer.TraceResult, expected: tracer.TraceResult) -> None:
    assert found.settings.corruption == expected.settings.corruption  # sigma was measured there
    assert found.clean == pytest.approx(expected.clean, abs=1e-6)
    assert found.restored.keys() == expected.restored.keys()
    for name, values in expected.restored.items():
        np.testing.assert_allclose(found.restored[name], values, atol=1e-6, rtol=0, err_msg=name)


def test_a_machine_without_tracer_finds_the_same_numbers(folder, served) -> None:
    model, here = tracer.load(folder, remote=True), tracer.load(folder, device="cpu")
    assert model.is_offloaded  # no weight is here
    found = tracer.trace(model, FACT, **{**OPTIONS, "engine": "sweep"})
    assert found.settings.engine == "passes"
    assert_same(found, tracer.trace(here, FACT, **OPTIONS))
    for direction in ("restore", "corrupt"):
        alone = {"samples": 2, "engine": "passes", "direction": direction}
        found, expected = (tracer.trace_neurons(each, FACT, [(1, 5)], **alone).restored for each in (model, here))
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


def test_a_rehearsal_on_this_machine_finds_the_same_numbers(folder) -> None:
    here = tracer.trace(tracer.load(folder, device="cpu"), FACT, kinds=("mlp",), **OPTIONS)
    assert_same(tracer.trace(tracer.load(folder, remote="local"), FACT, kinds=("mlp",), **OPTIONS), here)


def test_without_a_key_or_a_server_nothing_is_run(folder, monkeypatch) -> None:
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    with pytest.raises(ModelSourceError, match="nnsight login.*NDIF_API_KEY"):
        tracer.load(folder, remote=True)
    monkeypatch.setattr(CONFIG.API, "APIKEY", "a key")
    monkeypatch.setattr(CONFIG.API, "HOST", "http://localhost:9")  # where nobody answers
    with pytest.raises(ModelSourceError, match="cannot be reached at http://localhost:9"):
        tracer.load(folder, remote=True)
    monkeypatch.setattr(nnsight, "status", lambda: {"openai-community/gpt2": {}})
    with pytest.raises(ModelSourceError, match="It runs: openai-community/gpt2"):
        tracer.load(folder, remote=True)


def test_what_needs_the_weights_says_that_they_are_elsewhere(folder) -> None:
    model = tracer.load(folder, remote="local")
    with pytest.raises(ModelSourceError, match="on another machine.*load it here"):
        tracer.attribute(model, FACT)
    with pytest.raises(ModelSourceError, match="average with known_only=False"):
        tracer.average(model, [tracer.Fact("The capital of France is", "France", " Paris")], samples=2)
    with pytest.raises(ModelSourceError, match="and no more options"):
        tracer.load(folder, remote=True, device="cpu")
