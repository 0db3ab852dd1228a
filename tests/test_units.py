"""Heads and neurons set alone: both engines agree, and heads add up to their attention where the model is linear."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LAYERS, noise_of
from families import FAMILIES

import tracer
from tracer.answer import probability
from tracer.errors import AnatomyError, SiteError
from tracer.metric import metric_named
from tracer.passes import Passes
from tracer.sweep import Sweep
from tracer.units import heads, neurons

IDS = torch.tensor([[11, 87, 254, 33, 480, 129]])
TOKENS = [0, 1, 2, 5]


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_both_engines_agree(family_model: tracer.LanguageModel, kind: str, direction: str) -> None:
    passes, sweep = (
        engine(family_model, IDS, (1, 3), noise_of(2, 2), direction=direction) for engine in (Passes, Sweep)
    )
    chosen = [(0, 3), (1, 0), (LAYERS - 1, 40), (2, 7)]
    units = heads(family_model) if kind == "head" else neurons(family_model, chosen)
    found = sweep.unit_map(units, 5, TOKENS)
    assert found.shape == (len(TOKENS), len(units), 2)
    torch.testing.assert_close(found, passes.unit_map(units, 5, TOKENS), atol=1e-9, rtol=0)


def test_heads_add_up_to_their_attention_where_the_model_is_linear(linear_model: tracer.LanguageModel) -> None:
    ids, noise = torch.tensor([[3, 9, 4, 17, 2]]), noise_of(2, 2)
    sweep = Sweep(linear_model, ids, (1, 3), noise, metric=metric_named("logit"))
    base = sweep.corrupted_logits[:, 7]
    tokens = [1, 2, 4]
    alone = sweep.unit_map(heads(linear_model), 7, tokens) - base
    together = sweep.window_map("attn", 7, tokens, 1) - base
    summed = alone.unflatten(1, (LAYERS, linear_model.anatomy.n_heads)).sum(2)
    torch.testing.assert_close(summed, together, atol=1e-9, rtol=0)
    assert together.abs().max() > 1e-3


def test_a_trace_of_heads_has_their_effects_by_layer_and_number(toy_model: tracer.LanguageModel) -> None:
    fact = tracer.Fact("The Space Needle is located in the city of", "The Space Needle")
    found = tracer.trace_heads(toy_model, fact, roles=("last subject token", "last token"), samples=2)
    n_heads = toy_model.anatomy.n_heads
    assert found.effect.shape == (len(found.fact.token_ids), LAYERS, n_heads)
    traced = ~np.isnan(found.effect[:, 0, 0])
    assert [found.roles[n] for n in np.flatnonzero(traced)] == ["last subject token", "last token"]
    frame = found.to_frame()
    assert len(frame) == 2 * LAYERS * n_heads and set(frame.columns) >= {"token", "layer", "head", "effect"}
    best = found.top(3)
    assert list(best.effect.abs()) == sorted(best.effect.abs(), reverse=True)
    assert best.effect.abs().iloc[0] == pytest.approx(np.nanmax(np.abs(found.effect)))


def test_a_unit_trace_is_kept_whole(toy_model: tracer.LanguageModel, tmp_path) -> None:
    fact = tracer.Fact("The Space Needle is located in the city of", "The Space Needle")
    made = tracer.trace_neurons(toy_model, fact, [(1, 5), (3, 60)], samples=2, metric="logit", direction="corrupt")
    made.save(tmp_path / "units.safetensors")
    kept = tracer.UnitTrace.load(tmp_path / "units.safetensors")
    pd.testing.assert_frame_equal(kept.to_frame(), made.to_frame())
    assert kept.settings == made.settings and kept.fact == made.fact and kept.units == ((1, 5), (3, 60))
    assert kept.effect.shape == (len(made.fact.token_ids), 4, 61)
    for chosen in ([], [5], 3):
        with pytest.raises(SiteError, match="no neurons"):
            tracer.trace_neurons(toy_model, fact, chosen)
    for layers in ([], 2):
        with pytest.raises(SiteError, match="names no layers"):
            tracer.trace_heads(toy_model, fact, layers=layers)
    pair = tracer.trace_neurons(toy_model, fact, np.array([(1, 5)]), samples=2)
    assert pair.units == ((1, 5),)


@pytest.mark.parametrize("name", [name for name in FAMILIES])
def test_heads_agree_in_every_family(name: str) -> None:
    model = tracer.load(FAMILIES[name].build(), check=False)
    width = model.anatomy.embedding_size
    passes, sweep = (engine(model, IDS, (1, 3), noise_of(1, 2, width=width)) for engine in (Passes, Sweep))
    units = heads(model, [0, model.n_layers - 1])
    found = sweep.unit_map(units, 5, [2, 5])
    torch.testing.assert_close(found, passes.unit_map(units, 5, [2, 5]), atol=max(1e-9, FAMILIES[name].bound), rtol=0)
    assert (found - probability(sweep.corrupted_logits, 5)).abs().max() > 1e-7


def test_units_that_are_not_there_are_refused(toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(SiteError, match="neurons 0 to 127, not 128"):
        neurons(toy_model, [(0, 128)])
    with pytest.raises(SiteError, match="Layer 9"):
        heads(toy_model, [9])
    without = dataclasses.replace(toy_model.anatomy.names, head_matrix=None)
    with pytest.raises(AnatomyError, match="head_matrix"):
        heads(tracer.load(toy_model.torch, names=without, check=False))
