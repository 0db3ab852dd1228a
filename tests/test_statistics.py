"""Intervals, tests and components against hand arithmetic, and against data whose truth is known."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

import tracer
from tracer import compare, holm, merge, paired_test, run_study, sample_components, to_xarray
from tracer.effect import AverageTrace, Settings
from tracer.effect.resample import resampled_means
from tracer.errors import MissingPackageError, SiteError, StudyError
from tracer.fact import ROLES
from tracer.studies.components import components_of
from tracer.studies.paired import paired_tests
from tracer.studies.table import average_frame

LAST = ROLES.index("last subject token")
PLAN = tracer.Plan(kinds=("mlp",), window=2, samples=3, corruption=tracer.GaussianNoise(sigma=0.3))
FACTS = [tracer.Fact(f"The city of {city} is located in", city) for city in ("Rome", "Paris", "Oslo", "Lima")]


def planted(prompts: tuple[str, ...] = (), **maps: np.ndarray) -> AverageTrace:
    """An average with given effects [fact, layer] at the last subject token."""
    n, layers = next(iter(maps.values())).shape
    effects = {name: np.full((n, len(ROLES), layers), np.nan) for name in maps}
    for name, values in maps.items():
        effects[name][:, LAST] = values
    settings = Settings("planted", "", 3, 2, 1, "GaussianNoise()")
    return AverageTrace(prompts or tuple(map(str, range(n))), (), np.full(n, 0.9), np.full(n, 0.1), effects, settings)


def of_metric(average: AverageTrace, metric: str = "probability", direction: str = "restore") -> AverageTrace:
    settings = dataclasses.replace(average.settings, metric=metric, direction=direction)
    return dataclasses.replace(average, settings=settings)


def noise(n: int, layers: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randn(n, layers)


def test_resampled_means_are_means_of_the_facts_drawn() -> None:
    values = noise(6, 2)
    picks = np.random.RandomState(3).randint(6, size=(50, 6))
    np.testing.assert_allclose(resampled_means(values, resamples=50, seed=3), values[picks].mean(1))


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        frame = average_frame(planted(mlp=noise(40, 1, seed) + 0.5), resamples=400)
        covered += frame.bootstrap_low[0] <= 0.5 <= frame.bootstrap_high[0]
    assert 0.88 <= covered / 200 <= 0.99


def test_the_table_has_both_intervals_and_the_average_itself() -> None:
    average = planted(mlp=noise(30, 4))
    frame = average_frame(average)
    assert len(frame) == 4 and set(frame.role) == {"last subject token"}
    np.testing.assert_allclose(frame.effect, average.indirect_effect["mlp"][LAST])
    np.testing.assert_allclose(frame.high - frame.low, 2 * 1.96 * average.standard_error["mlp"][LAST])
    np.testing.assert_allclose(frame.bootstrap_high - frame.bootstrap_low, frame.high - frame.low, rtol=0.2)
    assert list(frame.relative_depth) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert set(frame.n) == {30} and set(frame.resamples) == {2000}


def test_one_fact_has_no_interval() -> None:
    frame = average_frame(planted(mlp=noise(1, 2)))
    assert frame[["low", "bootstrap_low", "bootstrap_high"]].isna().all(axis=None) and frame.effect.notna().all()


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.6, 0.7])), [1.0, 1.0])


def test_sign_flips_by_hand() -> None:
    """Of the 8 sign patterns of (1, 2, 3) only +++ and --- are as far from 0 as the mean 2 is."""
    first = np.array([[1.0], [2.0], [3.0]])
    found = paired_test(planted(mlp=first, attn=0 * first), "mlp", "attn")
    assert (found.n, found.resamples) == (3, 8)
    assert found.p[0] == pytest.approx(2 / 8) and found.difference[0] == 2


@pytest.mark.parametrize("method", ["sign-flip", "bootstrap"])
def test_only_the_layer_that_differs_is_found_and_chance_rarely_is(method) -> None:
    shift = np.array([0.0, 1.2, 0.0])
    alarms = 0
    for seed in range(40):
        common, own = noise(40, 3, seed) * 5, noise(40, 3, 100 + seed)
        average = planted(mlp=common + own + shift, attn=common + noise(40, 3, 200 + seed))
        found = paired_test(average, "mlp", "attn", method=method, resamples=1000)
        # Pairing takes the large common part out; an unpaired test would see nothing.
        assert found.p[1] < 0.05 and found.low[1] > 0, seed
        alarms += bool((found.p_holm[[0, 2]] < 0.05).any())
    assert alarms <= 6


def test_equal_maps_do_not_differ() -> None:
    same = noise(20, 2)
    for method in ("sign-flip", "bootstrap"):
        found = paired_test(planted(mlp=same, attn=same), "mlp", "attn", method=method)
        assert (found.p_holm == 1).all() and "do not differ" in str(found)


def test_tests_say_what_they_cannot_do() -> None:
    average = planted(mlp=noise(3, 2), attn=noise(3, 2, 1))
    with pytest.raises(SiteError, match="no 'state'; it has mlp, attn"):
        paired_tests(average, "state", "mlp")
    with pytest.raises(StudyError, match="no test 't'"):
        paired_test(average, "mlp", "attn", method="t")  # pyright: ignore[reportArgumentType] - the mistake
    with pytest.raises(StudyError, match="needs two or more"):
        paired_test(average, "mlp", "attn", role="last token")
    assert set(paired_tests(average, "mlp", "attn").role) == {"last subject token"}


def test_components_are_found_again() -> None:
    random = np.random.RandomState(0)
    effects = 0.3 + 0.2 * random.randn(4000, 1) + 0.5 * random.randn(4000, 5)
    found = components_of(effects)
    assert found.between == pytest.approx(0.2**2, rel=0.1) and found.within == pytest.approx(0.5**2, rel=0.1)
    assert found.half_width() == pytest.approx(1.96 * effects.mean(1).std(ddof=1) / np.sqrt(4000))
    assert found.half_width(facts=16000) == pytest.approx(found.half_width() / 2)
    assert found.share_of_samples == pytest.approx(0.05 / 0.09, rel=0.1) and "more noise samples" in str(found)
    with pytest.raises(StudyError, match="two facts and two samples"):
        components_of(effects[:, :1])


def test_locate_ranks_layers_and_says_in_words_how_sure_it_is() -> None:
    clear = tracer.locate(planted(mlp=0.01 * noise(20, 3) + [0.1, 0.5, 0.2]))
    assert [row.layer for row in clear.ranking] == [1, 2, 0]
    assert all(row.low < row.effect < row.high for row in clear.ranking)
    assert clear.rivals == [] and clear.describe().startswith("It is surely layer 1")
    torn = tracer.locate(planted(mlp=np.array([[0.9, 0.0, 0.0], [0.0, 0.0, 0.8]] * 5)))
    assert torn.rivals == [2] and torn.describe().startswith("It may be layer 0")
    second = torn.ranking[1]
    assert (second.layer, second.best_rank, second.worst_rank) == (2, 1, 2) and second.behind == pytest.approx(0.05)
    assert sum(row.share for row in torn.ranking) == pytest.approx(1) and torn.to_frame().layer.tolist() == [0, 2, 1]
    assert tracer.locate(planted(mlp=noise(20, 3) - 1)).describe().startswith("No layer stands out")


@pytest.mark.parametrize("metric", ["kl", "rank"])
@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_a_metric_that_falls_towards_the_clean_answer_mirrors_one_that_rises(metric: str, direction: str) -> None:
    """Its average with the signs turned has the same peak, ranking, shares and words, and the effects turned."""
    values = 0.1 * noise(20, 3) + [0.1, 0.5, 0.2]
    rising, falling = of_metric(planted(mlp=values)), of_metric(planted(mlp=-values), metric, direction)
    assert falling.peak("mlp")[:2] == rising.peak("mlp")[:2] == ("last subject token", 1)
    assert falling.peak("mlp")[2].mean == pytest.approx(-values[:, 1].mean())
    one, other = tracer.locate(rising), tracer.locate(falling)
    assert (other.layer, other.share, other.rivals) == (1, one.share, one.rivals)
    assert other.describe() == one.describe().replace("AIE 0.", "AIE -0.")
    for there, here in zip(one.ranking, other.ranking, strict=True):
        assert (here.layer, here.best_rank, here.worst_rank) == (there.layer, there.best_rank, there.worst_rank)
        assert (here.behind, here.behind_low) == pytest.approx((there.behind, there.behind_low))
        assert (here.effect, here.low, here.high) == pytest.approx((-there.effect, -there.high, -there.low))
    row = compare({"rising": rising, "falling": falling}).iloc[0]
    assert row["falling", "layer"] == row["rising", "layer"] == 1
    assert row["falling", "effect"] == pytest.approx(-row["rising", "effect"])


def test_an_effect_away_from_the_clean_answer_stands_out_at_no_layer() -> None:
    away = 0.1 * noise(20, 3) + 1
    assert tracer.locate(of_metric(planted(mlp=away), "kl")).describe().startswith("No layer stands out")
    assert not tracer.locate(of_metric(planted(mlp=-away), "kl")).describe().startswith("No layer stands out")


def test_studies_of_other_models_stand_side_by_side_by_depth() -> None:
    small = planted(("a", "b", "c"), mlp=np.tile([0.1, 0.5, 0.2], (3, 1)), attn=noise(3, 3))
    large = planted(("b", "c", "d"), mlp=np.tile([0.1, 0.2, 0.3, 0.9, 0.4], (3, 1)))
    table = compare({"small": small, "large": large})
    assert list(table.index) == [("mlp", "last subject token")]
    row = table.iloc[0]
    assert (row["small", "layer"], row["large", "layer"]) == (1, 3)
    assert (row["small", "depth"], row["large", "depth"]) == (0.5, 0.75)
    assert (row["large", "effect"], row["large", "n"]) == (pytest.approx(0.9), 3)
    assert compare({"small": small, "large": large}, shared=True).iloc[0]["small", "n"] == 2
    with pytest.raises(StudyError, match="map and role in common"):
        compare({"small": small, "other": planted(state=noise(2, 3))})


def test_merged_studies_are_one_study_of_all_facts(toy_model, tmp_path) -> None:
    one = run_study(toy_model, FACTS[:3], tmp_path / "one", plan=PLAN)
    two = run_study(toy_model, FACTS[2:], tmp_path / "two", plan=PLAN)
    both = run_study(toy_model, FACTS, tmp_path / "both", plan=PLAN)
    found = merge([one, two], tmp_path / "merged")
    assert found.n == 4 and found.average.prompts == both.average.prompts
    np.testing.assert_allclose(found.average.effects["mlp"], both.average.effects["mlp"], atol=1e-12)
    assert run_study(toy_model, FACTS, tmp_path / "merged", plan=PLAN).n == 4  # and it can go on
    other = run_study(toy_model, FACTS[3:], tmp_path / "three", plan=dataclasses.replace(PLAN, window=1))
    with pytest.raises(StudyError, match=r"settings.plan.window: 2 there, 1 now"):
        merge([one, other], tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_components_of_a_study_are_those_of_its_samples(toy_model, tmp_path) -> None:
    study = run_study(toy_model, FACTS, tmp_path / "run", plan=PLAN)
    found = sample_components(study, "mlp", role="last token", layer=1)
    effects = np.array([trace.restored["mlp"][-1, 1] - trace.corrupted_samples for _, trace in study.traces()])
    assert found.within == pytest.approx(effects.var(1, ddof=1).mean()) and (found.facts, found.samples) == (4, 3)
    with pytest.raises(SiteError, match="layers 0 to 3"):
        sample_components(study, "mlp", layer=9)


def test_labelled_arrays_are_the_same_numbers(toy_model) -> None:
    pytest.importorskip("xarray")
    average = planted(("a", "b"), mlp=noise(2, 3))
    found = to_xarray(average)
    assert (
        float(found.sel(kind="mlp", fact="b", role="last subject token", layer=2)) == average.effects["mlp"][1, LAST, 2]
    )
    trace = tracer.trace(toy_model, FACTS[0], kinds=("mlp",), samples=2)
    np.testing.assert_allclose(
        to_xarray(trace).mean("sample").sel(kind="mlp"), trace.indirect_effect["mlp"], atol=1e-12
    )


def test_without_xarray_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(MissingPackageError, match=r"locate-then-edit\[xarray\]"):
        to_xarray(planted(mlp=noise(2, 3)))
