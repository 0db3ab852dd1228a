"""Metrics are what they say, in both engines and both directions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from conftest import noise_of

import tracer
from tracer.errors import FactError, SiteError
from tracer.metric import METRICS, metric_named
from tracer.passes import Passes
from tracer.sweep import Sweep

IDS = torch.tensor([[11, 87, 254, 33, 480, 129]])
TOKENS = list(range(IDS.shape[1]))
FACT = tracer.Fact("The Space Needle is located in the city of", "The Space Needle", " Seattle", other=" Paris")


@pytest.mark.parametrize(("name", "direction"), list(product(METRICS, ["restore", "corrupt"])))
def test_both_engines_agree_in_every_metric_and_direction(
    family_model: tracer.LanguageModel, name: str, direction: str
) -> None:
    options = {"metric": metric_named(name), "other_ids": [9], "direction": direction}
    passes = Passes(family_model, IDS, (1, 3), noise_of(2, 2), **options)
    sweep = Sweep(family_model, IDS, (1, 3), noise_of(2, 2), **options)
    answer = int(passes.clean_logits.argmax())
    for fast, slow in (
        (sweep.state_map(answer, TOKENS), passes.state_map(answer, TOKENS)),
        (sweep.window_map("mlp", answer, TOKENS, 2), passes.window_map("mlp", answer, TOKENS, 2)),
        (sweep.window_map("attn", answer, TOKENS, 2), passes.window_map("attn", answer, TOKENS, 2)),
        (sweep.severed_map("mlp", answer, TOKENS), passes.severed_map("mlp", answer, TOKENS)),
        (sweep.severed_map("attn", answer, TOKENS), passes.severed_map("attn", answer, TOKENS)),
    ):
        torch.testing.assert_close(fast, slow, atol=1e-9, rtol=0)


def test_metrics_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])) + 7
    clean = torch.log(torch.tensor([[0.2, 0.3, 0.5]]))
    arguments = (logits, torch.tensor([1]), torch.tensor([2]), clean)
    kl = 0.2 * np.log(0.2 / 0.5) + 0.5 * np.log(0.5 / 0.2)
    by_hand = {
        "probability": 0.3,
        "log_probability": np.log(0.3),
        "logit": np.log(0.3) + 7,
        "logit_difference": np.log(0.3 / 0.2),
        "kl": kl,
        "rank": 1,
    }
    for name, value in by_hand.items():
        assert float(metric_named(name).of(*arguments)) == pytest.approx(value, abs=1e-6), name


def test_restoring_all_and_corrupting_nothing_end_alike(toy_model: tracer.LanguageModel) -> None:
    """Of the last state, restored it gives the clean run, corrupted the corrupted one: IE is TE in both directions."""
    fact = FACT.preflight(toy_model, warn=False)
    for name in METRICS:
        for direction in ("restore", "corrupt"):
            result = tracer.trace(toy_model, fact, kinds=("state",), samples=3, metric=name, direction=direction)
            found = result.indirect_effect["state"][-1, -1]
            assert found == pytest.approx(result.total_effect, abs=1e-9), (name, direction)
            assert (result.settings.metric, result.settings.direction) == (name, direction)


def test_a_metric_s_sense_is_where_its_value_moves_as_the_run_nears_the_clean_one() -> None:
    clean = torch.tensor([[5.0, 0.0, 1.0]])
    far, near = torch.tensor([[0.0, 2.0, 3.0]]), torch.tensor([[2.5, 1.0, 2.0]])
    for name, metric in METRICS.items():
        gain = metric.of(near, torch.tensor([0]), torch.tensor([1]), clean) - metric.of(
            far, torch.tensor([0]), torch.tensor([1]), clean
        )
        assert np.sign(float(gain)) == metric.sense, name


def test_both_directions_agree_where_the_model_is_linear(linear_model: tracer.LanguageModel) -> None:
    """There what restoring a site gains is what corrupting it loses."""
    options = {"samples": 3, "metric": "logit", "window": 2}
    fact = tracer.TokenizedFact((3, 9, 4, 17, 2), (1, 3), answer_ids=(7,))
    noise = tracer.GaussianNoise(3.0, 0.3)
    gained, lost = (
        tracer.trace(linear_model, fact, corruption=noise, direction=direction, **options).indirect_effect
        for direction in ("restore", "corrupt")
    )
    for kind, effect in gained.items():
        np.testing.assert_allclose(effect, lost[kind], atol=1e-8, err_msg=kind)
    assert np.abs(gained["mlp"]).max() > 1e-3 and np.abs(gained["attn"]).max() > 1e-3


def test_a_metric_that_cannot_be_read_is_refused_before_the_model_runs(toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(SiteError, match="no metric 'accuracy'.*log_probability"):
        tracer.trace(toy_model, FACT, metric="accuracy")
    with pytest.raises(SiteError, match='no direction "?.?up'):
        tracer.trace(toy_model, FACT, direction="up")
    bare = tracer.Fact(FACT.prompt, FACT.subject)
    with pytest.raises(FactError, match="no alternative answer.*other="):
        tracer.trace(toy_model, bare, metric="logit_difference")
    with pytest.raises(FactError, match="alternative answer is blank"):
        tracer.Fact(FACT.prompt, FACT.subject, other=" ")
