"""First-order maps: exact where the model is linear, right to first order elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from families import FAMILIES, IDS, SPAN
from torch import nn

import tracer
from tracer.anatomy.hidden import hidden_of, with_hidden
from tracer.effect import TraceResult
from tracer.errors import AnatomyError, FactError, NumericsError, SiteError
from tracer.first_order.attribution import attribute
from tracer.passes import Passes
from tracer.site import KINDS, window_layers
from tracer.sweep.hooks import output_changed

FACT = tracer.Fact("The Space Needle is located in the city of", subject="The Space Needle")
TOKENS = list(range(toys.IDS.shape[1]))
TOY_FACT = tracer.TokenizedFact(tuple(toys.IDS[0].tolist()), (1, 3), answer_ids=(5,))
NOISE = tracer.GaussianNoise(3.0, 0.1)


def toy(model) -> tracer.LanguageModel:
    return tracer.load(model, check=False)


def test_in_a_linear_model_the_estimate_is_the_exact_effect_on_the_logit(monkeypatch) -> None:
    """The network is linear; so that the metric is too, the answer's logit stands in for its probability."""
    model = toy(toys.linear_gpt2())
    monkeypatch.setattr("tracer.first_order.attribution.probability", lambda logits, answer: logits[..., answer])
    found = attribute(model, TOY_FACT, samples=2, window=1, corruption=NOISE)
    effects = {kind: values - found.corrupted_samples for kind, values in found.restored.items()}
    draws = NOISE.draws(samples=2, n_subject=2, d_model=toys.WIDTH, seed=1)
    passes = Passes(model, toys.IDS, (1, 3), draws)
    for kind in KINDS:
        for token in TOKENS:
            for layer in range(model.n_layers):
                held = passes.state(token, layer) if kind == "state" else passes.window(kind, token, layer, 1)
                exact = passes.restored(held)[:, 5] - passes.corrupted_logits[:, 5]
                np.testing.assert_allclose(effects[kind][token, layer], exact, atol=1e-12, err_msg=str((kind, token)))
    assert min(abs(effect[1:]).max() for effect in effects.values()) > 1e-2  # and there is something to agree on


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_falls_with_the_square_of_the_noise(kind: str) -> None:
    model, errors = toy(toys.gpt2()), []
    for sigma in (4e-4, 1e-4):
        options = {"samples": 2, "window": 1, "corruption": tracer.GaussianNoise(1.0, sigma)}
        estimate, exact = attribute(model, TOY_FACT, **options), tracer.trace(model, TOY_FACT, **options)
        errors.append(abs(estimate.restored[kind] - exact.restored[kind]).max())
    assert 12 < errors[0] / errors[1] < 20


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_first_order_map(name: str) -> None:
    """At little noise it is the exact map, but for what float32 softmaxes and curvature leave."""
    model, fact = tracer.load(FAMILIES[name].build(), check=False), tracer.TokenizedFact(tuple(IDS[0].tolist()), SPAN)
    options = {"samples": 2, "window": 1, "corruption": tracer.GaussianNoise(1.0, 1e-4)}
    estimate, exact = attribute(model, fact, **options), tracer.trace(model, fact, **options)
    assert (estimate.answer_id, estimate.fact) == (exact.answer_id, exact.fact)
    np.testing.assert_allclose(estimate.corrupted_samples, exact.corrupted_samples, atol=1e-6)
    for kind, effect in exact.indirect_effect.items():
        scale = abs(effect).max()
        assert scale > 1e-8
        np.testing.assert_allclose(estimate.indirect_effect[kind], effect, atol=0.06 * scale, err_msg=kind)


def test_a_window_is_the_sum_of_its_layers(toy_model: tracer.LanguageModel) -> None:
    single, wide = (attribute(toy_model, FACT, samples=2, window=window) for window in (1, 3))
    for kind in ("mlp", "attn"):
        layers = single.restored[kind] - single.corrupted_samples
        for layer in range(toy_model.n_layers):
            summed = layers[:, list(window_layers(layer, 3, toy_model.n_layers))].sum(1)
            np.testing.assert_allclose(wide.restored[kind][:, layer] - wide.corrupted_samples, summed, atol=1e-14)
    np.testing.assert_array_equal(single.restored["state"], wide.restored["state"])


def test_draws_do_not_see_each_other(toy_model: tracer.LanguageModel) -> None:
    three, one = (attribute(toy_model, FACT, samples=samples) for samples in (3, 1))
    for kind in KINDS:
        np.testing.assert_allclose(three.restored[kind][..., :1], one.restored[kind], atol=1e-13)


def dropped_by_the_slow_definition(model: tracer.LanguageModel, layer: int) -> dict[str, torch.Tensor]:
    """Estimates [token, layer, sample] where what layer `layer` adds is detached in the forward pass."""
    sites: dict[tuple[str, int], torch.Tensor] = {}

    def watch(kind: str, at: int):
        def hook(_module, _args, output):
            sites[kind, at] = hidden_of(output)
            if at == layer and kind != "state":
                return with_hidden(output, sites[kind, at].detach())
            return None

        return hook

    handles = []
    for at, block in enumerate(model.anatomy.blocks):
        handles.append(block.register_forward_hook(watch("state", at)))
        handles += [model.anatomy.site_module(k, at).register_forward_hook(watch(k, at)) for k in ("attn", "mlp")]
    draws = NOISE.draws(samples=2, n_subject=2, d_model=toys.WIDTH, seed=1)

    def corrupt(embedded: torch.Tensor) -> torch.Tensor:
        embedded = embedded.clone()
        embedded[1:, 1:3] += draws
        return embedded

    with output_changed(model.anatomy.embedding, corrupt):
        logits = model.torch(toys.IDS.expand(3, -1)).logits[1:, -1]
    for handle in handles:
        handle.remove()
    keys = list(sites)
    slopes = torch.autograd.grad(logits.softmax(-1)[:, 5].sum(), [sites[key] for key in keys], allow_unused=True)
    products = {}
    for key, slope in zip(keys, slopes, strict=True):
        difference = sites[key][:1] - sites[key][1:]
        products[key] = 0 * difference.sum(-1) if slope is None else (difference * slope[1:]).sum(-1)
    n_layers = model.n_layers
    return {
        kind: torch.stack([products[kind, at] for at in range(n_layers)]).permute(2, 0, 1).detach() for kind in KINDS
    }


def test_atp_star_of_sites_is_graddrop_and_the_error_says_so() -> None:
    with pytest.raises(SiteError, match='method="graddrop".*attribute_queries_and_keys'):
        attribute(toy(toys.gpt2()), TOY_FACT, corruption=NOISE, method="atp*")  # pyright: ignore[reportArgumentType] - the mistake


def test_graddrop_is_the_mean_size_over_dropped_layers() -> None:
    model = toy(toys.gpt2().requires_grad_(True))
    found = attribute(model, TOY_FACT, samples=2, window=1, corruption=NOISE, method="graddrop")
    drops = [dropped_by_the_slow_definition(model, layer) for layer in range(model.n_layers)]
    for kind in KINDS:
        # A sub-layer's own drop leaves nothing of it, so it does not count (Kramar et al. 2024).
        others = len(drops) if kind == "state" else len(drops) - 1
        by_hand = torch.stack([drop[kind].abs() for drop in drops]).sum(0) / others
        np.testing.assert_allclose(found.restored[kind] - found.corrupted_samples, by_hand, atol=1e-14)
        assert by_hand.max() > 1e-4


def test_graddrop_finds_what_cancels_in_the_plain_estimate() -> None:
    """Corrupted, coordinate 0 is positive and the MLP above undoes every change of it; clean, it is negative."""
    model = toys.linear_gpt2(2)
    with torch.no_grad():
        model.transformer.wte.weight[12] = -0.5
        model.transformer.wpe.weight.zero_()
        model.lm_head.weight = nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.lm_head.weight[5, 0] = 1.0  # the answer's logit is coordinate 0
        for block in model.transformer.h:
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
    model.transformer.h[1].mlp.forward = lambda hidden: -hidden.relu()  # x + MLP(x) = min(x, 0)
    fact = dataclasses.replace(TOY_FACT, subject_span=(5, 6))
    options = {"samples": 1, "kinds": ("state",), "corruption": tracer.GaussianNoise(1.0, 1.0)}
    exact = tracer.trace(toy(model), fact, **options).indirect_effect["state"][5, 0]
    plain, dropped = (attribute(toy(model), fact, method=m, **options) for m in ("atp", "graddrop"))
    assert exact < -5e-3
    assert plain.indirect_effect["state"][5, 0] == 0
    assert dropped.indirect_effect["state"][5, 0] > 5e-3


def test_estimates_save_plot_and_average_but_never_with_exact_maps(
    toy_model: tracer.LanguageModel, tmp_path: Path
) -> None:
    other = tracer.Fact("The mother tongue of Angela Merkel is", subject="Angela Merkel")
    first, second = (attribute(toy_model, fact, samples=2, corruption=NOISE) for fact in (FACT, other))
    assert first.settings.engine == "atp"
    first.save(tmp_path / "map.safetensors")
    loaded = TraceResult.load(tmp_path / "map.safetensors")
    assert loaded.settings == first.settings
    np.testing.assert_array_equal(loaded.restored["mlp"], first.restored["mlp"])
    assert len(tracer.plot_trace(first).axes) == 6 and tracer.average_of([first, second]).n == 2
    exact = tracer.trace(toy_model, FACT, samples=2, corruption=NOISE)
    assert dataclasses.replace(exact.settings, engine="atp") == first.settings
    with pytest.raises(FactError, match="average alike ones"):
        tracer.average_of([first, exact])


def test_effects_before_the_subject_are_zero_and_no_hook_stays(toy_model: tracer.LanguageModel) -> None:
    with torch.inference_mode():  # whatever mode the caller is in
        found = attribute(toy_model, tracer.Fact("The capital of France is", "France"), samples=2)
    begin = found.subject_span[0]
    for kind in KINDS:
        assert begin > 0 and (found.restored[kind][:begin] == found.corrupted_samples).all()
        assert abs(found.indirect_effect[kind][begin:]).max() > 1e-9
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in toy_model.torch.modules())


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"method": "exact"}, SiteError, "no method 'exact'. Choose from atp, graddrop"),
        ({"kinds": ("head",)}, SiteError, "no kind 'head'"),
        ({"window": 0}, SiteError, "window=1 or more"),
        ({"samples": 0}, SiteError, "samples=10"),
    ],
)
def test_bad_input_is_named_before_the_model_runs(toy_model, monkeypatch, options, error, said) -> None:
    monkeypatch.setattr(toy_model.torch, "forward", lambda **_: pytest.fail("the model ran"))
    with pytest.raises(error, match=said):
        attribute(toy_model, FACT, **options)


def test_facts_outside_the_model_and_numbers_that_overflow_are_errors() -> None:
    model = toy(toys.gpt2(1))
    with pytest.raises(FactError, match="outside the model's vocabulary of 50"):
        attribute(model, tracer.TokenizedFact((1, 99), (0, 1)), corruption=NOISE)
    with pytest.raises(AnatomyError, match='one. Write method="atp"'):
        attribute(model, TOY_FACT, corruption=NOISE, method="graddrop")
    model.torch.transformer.wpe.weight.data[3] = float("nan")
    with pytest.raises(NumericsError, match="NaN or infinite"):
        attribute(model, TOY_FACT, corruption=NOISE)


def test_a_site_cut_off_from_the_answer_is_an_error() -> None:
    model = toy(toys.gpt2(2))
    cut = model.anatomy.blocks[1].register_forward_pre_hook(lambda _module, args: (args[0].detach(), *args[1:]))
    try:
        with pytest.raises(AnatomyError, match="No gradient of the answer reaches 'state' of layer 0"):
            attribute(model, TOY_FACT, samples=1, corruption=NOISE)
    finally:
        cut.remove()
