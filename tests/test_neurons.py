"""First-order scores of neurons: exact where the model is linear, ranked as by brute force at little noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import toys
from transformers.pytorch_utils import Conv1D

import tracer
from tracer.errors import AnatomyError, FactError, SiteError
from tracer.first_order.screen import rank_correlation
from tracer.site import Direction
from tracer.units import input_width

FACT = tracer.TokenizedFact(tuple(toys.IDS[0].tolist()), (1, 4), answer_ids=(5,), other_ids=(9,))
NOISE = tracer.GaussianNoise(3.0, 0.1)
LITTLE = tracer.GaussianNoise(1.0, 1e-4)


def opened(model) -> tracer.LanguageModel:
    return tracer.load(model, check=False)


def every_neuron(model: tracer.LanguageModel) -> list[tuple[int, int]]:
    widths = [input_width(model.anatomy.value_matrix(layer)) for layer in range(model.n_layers)]
    return [(layer, neuron) for layer, width in enumerate(widths) for neuron in range(width)]


def brute(model: tracer.LanguageModel, roles: tuple[str, ...] | None, **options) -> np.ndarray:
    """The exact effect of every neuron, each restored in a run of its own, [token, layer, neuron]."""
    return tracer.trace_neurons(model, FACT, every_neuron(model), roles=roles, **options).effect


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_in_a_linear_model_the_estimate_is_the_exact_effect(direction: Direction) -> None:
    model = opened(toys.linear_gpt2())
    options = {"samples": 2, "corruption": NOISE, "metric": "logit", "direction": direction}
    found, exact = tracer.attribute_neurons(model, FACT, roles=None, **options), brute(model, None, **options)
    np.testing.assert_allclose(found.estimates, exact, atol=1e-12)
    assert (abs(exact) > 1e-3).sum() > 50
    assert found.clean - found.corrupted_samples.mean() == pytest.approx(
        tracer.trace(model, FACT, kinds=("state",), **options).total_effect, abs=1e-12
    )


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
@pytest.mark.parametrize("metric", ["probability", "log_probability", "logit", "logit_difference"])
@pytest.mark.parametrize(("build", "alike"), [(toys.gpt2, 0.9999), (toys.llama, 0.98)])  # Llama's norms are float32
def test_at_little_noise_all_neurons_rank_as_by_brute_force(
    build, alike: float, metric: str, direction: Direction
) -> None:
    model, roles = opened(build(2)), ("last subject token", "last token")
    options = {"samples": 2, "corruption": LITTLE, "metric": metric, "direction": direction}
    found, exact = tracer.attribute_neurons(model, FACT, roles=roles, **options), brute(model, roles, **options)
    np.testing.assert_array_equal(np.isnan(found.estimates), np.isnan(exact))
    largest = np.nanmax(abs(exact))
    assert largest > 1e-7
    np.testing.assert_allclose(found.estimates, exact, atol=5e-3 * largest)
    sizes = np.nanmax(abs(exact[[3, 5]]), axis=0)
    top = [sizes[unit] for unit in found.top(5)]
    np.testing.assert_allclose(top, sorted(sizes.ravel(), reverse=True)[:5], atol=5e-3 * largest)
    assert rank_correlation(found.estimates[[3, 5]], exact[[3, 5]]) > alike


def test_divergence_from_the_clean_run_ranks_neurons_too() -> None:
    model, options = opened(toys.gpt2()), {"samples": 4, "corruption": NOISE, "metric": "kl"}
    found = tracer.attribute_neurons(model, FACT, **options)
    exact = brute(model, ("last subject token",), **options)
    assert rank_correlation(found.estimates[3], exact[3]) > 0.8
    layer, neuron = found.top(1)[0]
    assert np.sign(found.estimates[3, layer, neuron]) == np.sign(exact[3, layer, neuron])


def test_the_top_neurons_go_into_an_exact_trace_and_a_table(toy_model: tracer.LanguageModel) -> None:
    fact = tracer.Fact("The Space Needle is located in the city of", "The Space Needle")
    options = {"samples": 2, "corruption": "uniform", "roles": ("last subject token", "last token")}
    with torch.inference_mode():  # whatever mode the caller is in
        scores = tracer.attribute_neurons(toy_model, fact, **options)
    exact = tracer.trace_neurons(toy_model, fact, scores.top(6), **options)
    assert exact.units == tuple(scores.top(6)) and exact.answer_id == scores.answer_id
    assert dataclasses.replace(exact.settings, engine="atp") == scores.settings
    np.testing.assert_allclose(exact.corrupted_samples, scores.corrupted_samples, atol=1e-12)
    frame = scores.to_frame(6)
    assert len(frame) == 12 and list(zip(frame.layer, frame.neuron, strict=True))[::2] == scores.top(6)
    sizes = frame.groupby(["layer", "neuron"], sort=False).estimate.agg(lambda each: each.abs().max())
    assert list(sizes) == sorted(sizes, reverse=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in toy_model.torch.modules())


def test_before_the_subject_nothing_is_estimated_and_layers_may_differ_in_width() -> None:
    torch_model = toys.gpt2()
    mlp = torch_model.transformer.h[1].mlp
    mlp.c_fc, mlp.c_proj = Conv1D(10, toys.WIDTH).double(), Conv1D(toys.WIDTH, 10).double()
    model = opened(torch_model)
    found = tracer.attribute_neurons(model, FACT, roles=None, samples=1, corruption=NOISE)
    assert found.estimates.shape == (6, 3, 64)
    assert (found.estimates[0, 1, :10] == 0).all() and np.isnan(found.estimates[:, 1, 10:]).all()
    assert sorted(found.top(10_000)) == every_neuron(model)


def test_what_cannot_be_ranked_is_named_before_the_model_runs(toy_model, monkeypatch) -> None:
    without = dataclasses.replace(toy_model.anatomy.names, value_matrix=None)
    bare = tracer.load(toy_model.torch, names=without, check=False)
    monkeypatch.setattr(toy_model.torch, "forward", lambda **_: pytest.fail("the model ran"))
    fact = tracer.Fact("The capital of France is", "France")
    for options in ({"metric": "rank"}, {"metric": "kl", "direction": "corrupt"}):
        with pytest.raises(SiteError, match="has no slope.*log_probability"):
            tracer.attribute_neurons(toy_model, fact, **options)
    with pytest.raises(FactError, match="no role 'verb'"):
        tracer.attribute_neurons(toy_model, fact, roles=("verb",))
    with pytest.raises(FactError, match="no alternative answer"):
        tracer.attribute_neurons(toy_model, fact, metric="logit_difference")
    with pytest.raises(AnatomyError, match="no single MLP output matrix"):
        tracer.attribute_neurons(bare, fact)


def test_neurons_that_no_gradient_reaches_and_no_neurons_are_errors() -> None:
    model = opened(toys.gpt2(2))
    cut = model.anatomy.blocks[1].register_forward_pre_hook(lambda _module, args: (args[0].detach(), *args[1:]))
    try:
        with pytest.raises(AnatomyError, match="reaches the neurons of layer 0"):
            tracer.attribute_neurons(model, FACT, samples=1, corruption=NOISE)
    finally:
        cut.remove()
    with pytest.raises(SiteError, match="k=0"):
        tracer.attribute_neurons(model, FACT, samples=1, corruption=NOISE).top(0)
