"""Hooks that come after load switch the sweep off; the tracer's own, and those that were there, do not."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
import torch
from conftest import noise_of, tiny_gpt2

import tracer
from tracer.errors import TracerWarning
from tracer.sweep import Sweep
from tracer.units import heads

FACT = tracer.TokenizedFact((11, 87, 254, 33, 480), (1, 3))
OPTIONS = {"samples": 2, "corruption": tracer.GaussianNoise(3, 0.3), "kinds": ("mlp",)}


def steer_token_three(_module, _args, output: torch.Tensor) -> torch.Tensor:
    at_three = torch.arange(output.shape[1])[None, :, None] == 3
    return output * (1 + at_three)  # a constant added to a whole state would not outlast the next norm


@pytest.mark.parametrize("place", ["transformer.h.1.mlp", "transformer.h.2.attn.c_proj", "transformer.ln_f"])
def test_a_hook_that_goes_by_position_is_traced_by_the_definition(toy_model: tracer.LanguageModel, place: str) -> None:
    before = tracer.trace(toy_model, FACT, **OPTIONS)
    handle = toy_model.torch.get_submodule(place).register_forward_hook(steer_token_three)
    with pytest.warns(TracerWarning, match=rf"first on {place}\. .*Take the hooks off"):
        steered = tracer.trace(toy_model, FACT, **OPTIONS)
    slow = tracer.trace(toy_model, FACT, **OPTIONS, engine="passes")
    assert (before.settings.engine, steered.settings.engine) == ("sweep", "passes")
    np.testing.assert_array_equal(steered.restored["mlp"], slow.restored["mlp"])
    handle.remove()
    after = tracer.trace(toy_model, FACT, **OPTIONS)
    assert after.settings.engine == "sweep" and toy_model.sweep_fault is None
    np.testing.assert_array_equal(after.restored["mlp"], before.restored["mlp"])


def test_a_hook_that_was_there_at_load_is_checked_by_the_self_test() -> None:
    torch_model = tiny_gpt2().double()
    torch_model.transformer.h[1].mlp.register_forward_hook(lambda _module, _args, output: 0.5 * output)
    model = tracer.load(torch_model)
    assert model.sweep_fault is None
    torch_model.transformer.h[1].register_forward_hook(steer_token_three)
    with pytest.warns(TracerWarning, match="token"):
        again = tracer.load(torch_model)
    assert "differs from the definition" in str(again.sweep_fault)


def test_a_warning_comes_once_for_each_new_hook(toy_model: tracer.LanguageModel) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for layer in (0, 0, 1):
            toy_model.anatomy.blocks[layer].register_forward_pre_hook(lambda _module, _args: None)
            for _ in range(2):
                assert toy_model.sweep_fault
    assert len(caught) == 3


def test_a_fault_that_was_set_stands(toy_model: tracer.LanguageModel) -> None:
    toy_model.sweep_fault = "as another process found"
    toy_model.torch.lm_head.register_forward_hook(lambda _module, _args, _output: None)
    assert toy_model.sweep_fault == "as another process found"


def test_traces_in_other_threads_are_no_fault(toy_model: tracer.LanguageModel) -> None:
    """Every hook of sweep, replay and definition, met at all times of a trace, is known as the tracer's own."""
    seen, running = [], threading.Event()
    running.set()

    def look() -> None:
        while running.is_set():
            hooked = any(module._forward_hooks or module._forward_pre_hooks for module in toy_model.torch.modules())
            seen.append((hooked, toy_model.sweep_fault))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        sweep = Sweep(toy_model, torch.tensor([FACT.token_ids]), (1, 3), noise_of(4, 2))
        for kind in ("mlp", "attn"):
            sweep.window_map(kind, 5, [1, 2, 3, 4], 3)
        sweep.unit_map(heads(toy_model), 5, [2, 4])
    finally:
        running.clear()
        looker.join()
    assert any(hooked for hooked, _ in seen)
    assert not any(fault for _, fault in seen)
