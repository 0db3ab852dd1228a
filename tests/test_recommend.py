"""Ranking by weights: planted editors come in the planted order, with the intervals of their cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from compared import COST, planted_comparison, point, scores
from typer.testing import CliRunner

from editing.cli import app
from editing.comparison import PROPERTIES, read_comparison, recommend, scores_frame
from editing.comparison.profile import profile
from editing.comparison.tables import shown_tables
from editing.errors import EvaluationError
from tracer.effect.resample import percentile_interval, resampled_means


def cases(reliability: float, locality: float, n: int = 6, **more):
    return [
        scores(at, {"reliability_token_acc": reliability, "locality_agreement": locality}, **more) for at in range(n)
    ]


def test_the_weights_decide_who_is_first(tmp_path: Path) -> None:
    found = planted_comparison(
        tmp_path, {"copies": cases(0.0, 1.0), "shouts": cases(1.0, 0.0), "good": cases(0.9, 0.8)}
    )
    by_both = recommend(found, {"reliability": 1, "locality": 1}, resamples=50)
    assert [one.editor for one in by_both.ranked] == ["good", "copies", "shouts"]
    assert by_both.ranked[0].score == pytest.approx(0.85) and by_both.ranked[0].first == 1
    by_reliability = recommend(found, {"reliability": 3, "locality": 1}, resamples=50)
    assert [(one.editor, one.score) for one in by_reliability.ranked] == [
        ("good", pytest.approx(0.875)), ("shouts", 0.75), ("copies", 0.25)
    ]  # fmt: skip


def test_an_editor_that_is_better_in_every_case_is_first_in_every_resample(tmp_path: Path) -> None:
    spread = np.linspace(0, 0.9, 8)
    better = [scores(at, {"reliability_token_acc": value + 0.01}) for at, value in enumerate(spread)]
    worse = [scores(at, {"reliability_token_acc": value}) for at, value in enumerate(spread)]
    first, second = recommend(planted_comparison(tmp_path, {"b": worse, "a": better}), {"reliability": 1}).ranked
    assert (first.editor, first.first, second.first) == ("a", 1, 0)
    assert first.low < second.score < first.high  # their own intervals overlap widely
    low, high = percentile_interval(resampled_means(spread, resamples=10_000))
    assert (second.low, second.high) == pytest.approx((low, high), abs=0.03)  # of other draws


def test_files_are_resampled_independently_and_one_case_has_no_interval(tmp_path: Path) -> None:
    def of(values):
        return {"a": [scores(at, {"reliability_token_acc": value}) for at, value in enumerate(values)]}

    planted_comparison(tmp_path / "two", of([0, 1] * 20), data="one")
    both = planted_comparison(tmp_path / "two", of([1, 0] * 20), data="other")
    (one,) = recommend(both, {"reliability": 1}).ranked
    assert one.score == 0.5 and one.high - one.low == pytest.approx(2 * 1.96 * 0.5 / 80**0.5, abs=0.03)
    alone = planted_comparison(tmp_path / "alone", of([1]))
    (one,) = recommend(alone, {"reliability": 1}).ranked
    assert one.score == 1 and np.isnan([one.low, one.high, one.first]).all()
    told = CliRunner().invoke(app, ["recommend", str(tmp_path / "alone"), "--weights", "reliability=1"]).stdout
    assert "nan" not in told and "first" in told


def test_equal_editors_share_the_first_place(tmp_path: Path) -> None:
    found = recommend(planted_comparison(tmp_path, {"a": cases(0.5, 0.5), "b": cases(0.5, 0.5)}), {"locality": 1})
    assert [one.first for one in found.ranked] == [0.5, 0.5]


def test_what_the_unedited_model_has_is_said_beside_the_ranking(tmp_path: Path) -> None:
    def asked(after: float):
        return [scores(at, {"reliability_token_acc": after}, {"reliability_token_acc": at / 4}) for at in range(4)]

    found = planted_comparison(tmp_path, {"a": asked(1.0), "b": asked(0.5)})
    assert recommend(found, {"reliability": 1}, resamples=20).unedited == {"reliability": pytest.approx(0.375)}
    told = CliRunner().invoke(app, ["recommend", str(tmp_path), "--weights", "reliability=1"]).stdout
    assert f"model: {read_comparison(tmp_path).about['model']['name']}" in told.splitlines()
    assert "the unedited model has reliability 37.5" in told
    above = CliRunner().invoke(app, ["recommend", str(tmp_path.parent)])
    assert above.exit_code and str(tmp_path) in " ".join(above.stderr.replace("\n", "").split())


def test_what_was_not_measured_is_said_and_who_lacks_something_is_not_ranked(tmp_path: Path) -> None:
    less = [scores(at, {"reliability_token_acc": 1.0}) for at in range(3)]
    found = planted_comparison(tmp_path, {"whole": cases(0.5, 0.5, 3), "part": less})
    ranking = recommend(found, {"reliability": 1, "locality": 1, "portability": 2}, resamples=20)
    assert ranking.not_measured == ("portability",) and dict(ranking.weights) == {"reliability": 1, "locality": 1}
    assert [one.editor for one in ranking.ranked] == ["whole"]
    assert ranking.not_ranked == {"part": "locality (counterfact, single)"}
    assert [one.editor for one in recommend(found, {"reliability": 1}, resamples=20).ranked] == ["part", "whole"]
    with pytest.raises(EvaluationError, match="measured nothing. What it did measure: reliability, locality, time"):
        recommend(found, {"fluency": 1})


def test_an_editor_with_fewer_cases_than_the_others_is_not_ranked_on_them(tmp_path: Path) -> None:
    halves = [scores(at, {"reliability_token_acc": float(at < 3), "locality_agreement": 0.5}) for at in range(6)]
    found = planted_comparison(tmp_path, {"begun": cases(1.0, 1.0, 2), "whole": halves, "low": cases(0.1, 0.1)})
    ranking = recommend(found, {"reliability": 1, "locality": 1}, resamples=20)
    assert [one.editor for one in ranking.ranked] == ["whole", "low"] and ranking.ranked[0].score == 0.5
    said = "counterfact, single, 2 of 6 cases"
    assert ranking.not_ranked == {"begun": f"reliability ({said}), locality ({said})"}
    assert set(profile(found, resamples=5).query("property == 'reliability'")["editor"]) == {"whole", "low"}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"speed": 1}, "no property 'speed'"),
        ({"time": -1}, "weight of time is -1"),
        ({"time": 0}, "No weight is above 0"),
    ],
)
def test_weights_that_rank_nothing_are_refused(tmp_path: Path, weights: dict, said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        recommend(planted_comparison(tmp_path, {"a": cases(1.0, 1.0)}), weights)


def test_costs_are_on_fixed_scales(tmp_path: Path) -> None:
    time, storage, latency = (PROPERTIES[name] for name in ("time", "storage", "latency"))
    assert [time.on_scale(seconds) for seconds in (0.001, 0.01, 1, 100, 1e4)] == pytest.approx([1, 1, 0.5, 0, 0])
    assert (storage.on_scale(1e6), latency.on_scale(10**0.5)) == pytest.approx((0.5, 0.5))
    slow = [scores(at, {"reliability_token_acc": 1.0}, seconds=value) for at, value in enumerate((9, 9, 1, 1, 1, 10))]
    table = profile(planted_comparison(tmp_path, {"slow": slow}, costs={"slow": COST}), resamples=200)
    values = table.set_index("property")["value"]
    assert values["time"] == pytest.approx(50)  # the first two edits warm up; the median of 1, 1, 1, 10 is 1
    assert (values["preparation"], values["memory"], values["latency"]) == pytest.approx((50, 100, 100))
    assert "storage" not in values
    interval = table.set_index("property").loc["time", ["low", "high"]]
    assert interval["low"] == pytest.approx(25) and interval["high"] == pytest.approx(50)


def test_a_training_counts_as_preparation_and_what_it_left_as_storage(tmp_path: Path) -> None:
    editors = dict.fromkeys(("trained", "forgotten", "here"), [scores(0, {"reliability_token_acc": 1.0})])
    known = {**COST, "persistent_bytes": 10**5, "training_seconds": 900.0, "training_bytes": 9 * 10**5}
    costs = {
        "trained": known,
        "forgotten": {**known, "training_seconds": None},
        "here": {**known, "training_seconds": 0.0, "training_bytes": 0},
    }
    found = planted_comparison(tmp_path, editors, costs=costs)
    values = profile(found, resamples=20).set_index(["property", "editor"])["value"]
    assert values["preparation"].to_dict() == pytest.approx({"trained": 25, "here": 50})
    assert values["storage"].to_dict() == pytest.approx({"trained": 50, "forgotten": 50, "here": 100 * 4 / 6})
    shown = shown_tables(found, scores_frame(found))[-1]
    assert list(shown.cells["training_seconds"]) == ["900", "", "0"] and "not measured here" in shown.source


def test_shares_of_before_and_growth_are_brought_to_one(tmp_path: Path) -> None:
    worse = [scores(at, {"other_task_accuracy": float(at < 2), "perplexity_ratio": 2.0},
                    {"other_task_accuracy": 1.0, "perplexity_ratio": 1.0}) for at in range(4)]  # fmt: skip
    better = [scores(at, {"other_task_accuracy": 1.0, "perplexity_ratio": 0.5},
                     {"other_task_accuracy": 0.5, "perplexity_ratio": 1.0}) for at in range(4)]  # fmt: skip
    table = profile(planted_comparison(tmp_path, {"worse": worse, "better": better}), resamples=20)
    values = table.query("property != 'time'").set_index(["property", "editor"])["value"].to_dict()
    assert values == {("other-tasks", "worse"): 50, ("other-tasks", "better"): 100,
                      ("language", "worse"): 50, ("language", "better"): 100}  # fmt: skip


def test_a_property_is_the_mean_over_its_kinds_and_files(tmp_path: Path) -> None:
    both = [scores(at, {"one_hop_token_acc": 0.2, "subject_replace_token_acc": 0.6}) for at in range(3)]
    planted_comparison(tmp_path, {"a": both})
    other = [scores(at, {"reasoning_token_acc": 1.0}) for at in range(2)]
    found = planted_comparison(tmp_path, {"a": other}, data="knowedit")
    (row,) = profile(found, resamples=5).query("property != 'time'").to_dict("records")
    assert (row["property"], row["value"]) == ("portability", pytest.approx(60))


def test_batches_and_sequences_count_at_the_most_edits_that_any_was_given(tmp_path: Path) -> None:
    def of(value: float, n: int):
        return [scores(at, {"reliability_token_acc": value}) for at in range(n)]

    found = planted_comparison(
        tmp_path, {},
        batches={"a": {1: of(1.0, 1), 2: of(0.5, 2), 4: of(0.1, 4)}, "b": {1: of(1.0, 1), 2: of(0.7, 2)}},
        points={"a": [point(1, of(1.0, 1), []), point(3, of(0.4, 3), [])],
                "b": [point(1, of(1.0, 1), []), point(3, of(0.6, 3), [])]},
    )  # fmt: skip
    values = profile(found, resamples=5).set_index(["property", "editor"])["value"].to_dict()
    assert values == pytest.approx({("batch", "a"): 10, ("sequence", "a"): 40, ("sequence", "b"): 60})
    ranking = recommend(found, {"batch": 1}, resamples=5)
    assert [one.editor for one in ranking.ranked] == ["a"]
    assert ranking.not_ranked == {"b": "batch (counterfact, batch, 4 edits)"}


def test_who_stopped_early_changes_no_rank_of_the_others(tmp_path: Path) -> None:
    def of(values):
        return [point(n, [scores(at, {"reliability_token_acc": value}) for at in range(n)], []) for n, value in values]

    points = {"a": of([(2, 0.9), (6, 0.2)]), "b": of([(2, 0.8), (6, 0.7)])}
    two = recommend(planted_comparison(tmp_path / "two", {}, points=points), {"sequence": 1}, resamples=5)
    three = planted_comparison(tmp_path / "three", {}, points={**points, "killed": of([(2, 0.5)])})
    again = recommend(three, {"sequence": 1}, resamples=5)
    assert [one.editor for one in two.ranked] == [one.editor for one in again.ranked] == ["b", "a"]
    assert again.not_ranked == {"killed": "sequence (counterfact, sequential, 6 edits)"}


def test_the_command_ranks_and_says_what_is_missing(tmp_path: Path) -> None:
    planted_comparison(tmp_path, {"copies": cases(0.0, 1.0), "good": cases(0.9, 0.8)})
    command = ["recommend", str(tmp_path), "--weights", "reliability=1,locality=0.5,fluency=1"]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert lines[1].split()[:3] == ["1", "good", "86.7"] and "fluency: NOT MEASURED here" in told.stdout
    record = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [one["editor"] for one in record["editors"]] == ["good", "copies"] and record["cases"] == {"counterfact": 6}
    wrong = CliRunner().invoke(app, ["recommend", str(tmp_path), "--weights", "time=fast"])
    assert wrong.exit_code == 2
    twice = CliRunner().invoke(app, ["recommend", str(tmp_path), "--weights", "reliability=1, reliability =5"])
    assert twice.exit_code == 2 and "reliability twice" in twice.output
