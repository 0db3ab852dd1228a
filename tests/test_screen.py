"""Screening: exact where it says so, and bounds that hold as often as they claim."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import toys

import tracer
from tracer.errors import SiteError
from tracer.first_order.screen import exceeding_at_most, rank_correlation, screen

FACT = tracer.TokenizedFact(tuple(toys.IDS[0].tolist()), (1, 3), answer_ids=(5,))
OPTIONS = {"samples": 2, "window": 2, "corruption": tracer.GaussianNoise(3.0, 0.1)}


@pytest.fixture(scope="module")
def model() -> tracer.LanguageModel:
    return tracer.load(toys.gpt2(), check=False)


@pytest.mark.parametrize("kind", ["state", "mlp", "attn"])
def test_computed_cells_hold_the_exact_effect(model: tracer.LanguageModel, kind: str) -> None:
    exact = tracer.trace(model, FACT, kinds=(kind,), **OPTIONS).indirect_effect[kind]
    found = screen(model, FACT, kind, keep=4, check=3, **OPTIONS)
    computed = ~np.isnan(found.exact)
    assert computed.sum() == 7 and found.n_left == 5 * model.n_layers - 4
    np.testing.assert_allclose(found.exact[computed], exact[computed], atol=1e-12)
    sizes = abs(found.estimate.indirect_effect[kind])
    assert [sizes[cell] for cell in found.kept] == sorted(sizes.ravel())[:-5:-1]
    assert not set(found.kept) & set(found.sampled)
    assert found.top[0][1] == pytest.approx(max(exact[computed], key=abs))
    assert f"at most {found.may_exceed} unchecked cells exceed {found.largest_sampled:.4f}" in str(found)


def test_all_cells_checked_leave_nothing_to_miss(model: tracer.LanguageModel) -> None:
    exact = tracer.trace(model, FACT, kinds=("mlp",), **OPTIONS).indirect_effect["mlp"]
    found = screen(model, FACT, "mlp", keep=5, check=100, **OPTIONS)
    assert found.may_exceed == 0 and not np.isnan(found.exact[1:]).any()
    estimate = found.estimate.indirect_effect["mlp"]
    assert found.rank_correlation == pytest.approx(rank_correlation(estimate[1:], exact[1:]))
    sized = screen(model, FACT, "mlp", keep=5, check=100, method="graddrop", **OPTIONS)
    sizes = sized.estimate.indirect_effect["mlp"]
    assert sized.rank_correlation == pytest.approx(rank_correlation(sizes[1:], abs(exact[1:])))


@pytest.mark.parametrize(("n_left", "n_sampled", "confidence"), [(8, 3, 0.9), (9, 5, 0.8), (6, 6, 0.9), (7, 1, 0.95)])
def test_the_bound_is_wrong_no_more_often_than_it_says(n_left: int, n_sampled: int, confidence: float) -> None:
    """Of all samples of the ranks 0 .. n-1: how often do more than the bound lie above the sample's largest?"""
    bound = exceeding_at_most(n_left, n_sampled, confidence)
    above = [n_left - 1 - max(sample) for sample in combinations(range(n_left), n_sampled)]
    assert np.mean([count > bound for count in above]) <= 1 - confidence + 1e-12
    if bound:  # and no smaller bound would do
        assert np.mean([count > bound - 1 for count in above]) > 1 - confidence


def test_without_a_sample_nothing_is_bounded(model: tracer.LanguageModel) -> None:
    found = screen(model, FACT, "state", keep=2, check=0, **OPTIONS)
    assert found.may_exceed == found.n_left and math.isnan(found.largest_sampled)


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation(np.array([1, 2, 3, 4]), np.array([1, 4, 9, 16])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 1, 2])) == pytest.approx(-0.5)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4
    assert rank_correlation(np.array([0, 5, 5, 9]), np.array([0, 1, 2, 3])) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(rank_correlation(np.ones(3), np.arange(3)))
    assert math.isnan(rank_correlation(np.ones(1), np.ones(1)))


@pytest.mark.parametrize("bad", [{"keep": 0}, {"check": -1}, {"confidence": 1.0}, {"confidence": 0.0}])
def test_bad_input_is_named(model: tracer.LanguageModel, bad: dict) -> None:
    with pytest.raises(SiteError, match=next(iter(bad))):
        screen(model, FACT, "mlp", **bad)
    with pytest.raises(SiteError, match="no kind 'neuron'"):
        screen(model, FACT, "neuron")
