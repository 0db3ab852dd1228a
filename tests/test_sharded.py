"""A model cut over two processes: every process finds the numbers of one that holds it whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import on_each_rank
import pytest
import torch
from conftest import make_tokenizer, tiny_gemma3, tiny_gpt2, tiny_llama

import tracer
from tracer.errors import ModelSourceError
from tracer.model.tensor_parallel import parallel_plan

MODELS = {"llama": tiny_llama, "gemma3, one matrix as embedding and head": tiny_gemma3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models, and beside each what two processes found together."""
    places = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        places[name] = tmp_path_factory.mktemp("sharded") / "model"
        make().save_pretrained(places[name])
        make_tokenizer(bos=False).save_pretrained(places[name])
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    # Two threads each, of which the sweep must use one: slices are put together in the order of the calls.
    own = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(tracer.__file__).parents[1])}
    environment = {**os.environ, **own}
    command = [sys.executable, *launch, on_each_rank.__file__, *map(str, places.values())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    return places


def about(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"about-{rank}.json").read_text())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_finds_the_maps_of_one_that_holds_the_model_whole(folders, name: str, rank: int) -> None:
    model = tracer.load(folders[name], device="cpu")
    assert about(folders[name], rank)["sharded"] and about(folders[name], rank)["fault"] is None
    assert about(folders[name], rank)["fingerprint"] == model.fingerprint()
    found, expected = torch.load(folders[name] / f"traced-{rank}.pt"), on_each_rank.traced(model)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        torch.testing.assert_close(
            found[key], values, atol=1e-5, rtol=0, equal_nan=True, msg=lambda said, key=key: f"{key}: {said}"
        )


def test_only_the_first_process_writes_and_a_continued_study_ends_alike(folders) -> None:
    for folder in folders.values():
        first, second = about(folder, 0), about(folder, 1)
        assert not first["study is elsewhere"] and second["study is elsewhere"]
        assert first["continued alike"]
        assert first["average"] == second["average"]
        whole, found = tracer.load(folder, device="cpu"), tracer.Study.open(folder / "study").average
        expected = tracer.run_study(whole, on_each_rank.FACTS, folder / "whole", plan=on_each_rank.PLAN).average
        for kind, effects in expected.effects.items():
            np.testing.assert_allclose(found.effects[kind], effects, atol=1e-6, rtol=0, err_msg=kind)


def test_what_needs_a_whole_matrix_says_so(folders) -> None:
    for folder in folders.values():
        edit, edges, neurons, queries, workers = about(folder, 1)["refused"]
        assert "BaseModelError" in edit and "is cut over several processes. Load the model in one" in edit
        assert "AnatomyError: Edges are inside sub-layers" in edges
        assert "AnatomyError: Neurons to attribute are inside sub-layers" in neurons
        assert "AnatomyError: Queries and keys are inside sub-layers" in queries
        assert "WorkerError" in workers and "workers=0" in workers


def test_a_model_is_cut_only_under_torchrun_and_only_where_it_can_be(tmp_path, monkeypatch) -> None:
    tiny_gpt2().save_pretrained(tmp_path / "gpt2")
    tiny_llama().save_pretrained(tmp_path / "llama")
    with pytest.raises(ModelSourceError, match="torchrun --nproc-per-node 2 script.py"):
        tracer.load(tmp_path / "llama", tensor_parallel=True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ModelSourceError, match="leave out device="):
        tracer.load(tmp_path / "llama", tensor_parallel=True, device="cpu")
    with pytest.raises(ModelSourceError, match="'gpt2'.*cannot be cut into 2"):
        tracer.load(tmp_path / "gpt2", tensor_parallel=True)
    monkeypatch.setenv("WORLD_SIZE", "3")  # of 4 heads
    with pytest.raises(ModelSourceError, match="'llama'.*cannot be cut into 3"):
        parallel_plan(str(tmp_path / "llama"))
