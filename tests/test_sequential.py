"""Batches and sequences: planted retention, checkpoints, the alarm, and the way back to the first weights."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from planted import RECORD, Dictated, Planted, RankOne, Refuses, simple_cases

import tracer
from editing import EditingWarning, EditRequest
from editing.datasets.benchmarks import counterfact_case
from editing.edit import undo_all
from editing.errors import EvaluationError
from editing.evaluation import (
    Case,
    Examination,
    Questions,
    SequentialPlan,
    batch_edits,
    batch_summary,
    retention_matrix,
    sequential_edits,
    sequential_summary,
    single_edits,
    without_conflicts,
)
from editing.metrics.of_cases import GENERAL_TEXT, MOST_RATIO
from editing.scoring.scores import target_scores

QUICK = Questions(free=False)
EACH = SequentialPlan(checkpoints=(1, 2, 3, 4, 5, 6), factor=1e9)


def sequence(model, editor, cases, plan=EACH, **options):
    return list(sequential_edits(Examination(model, QUICK), editor, cases, plan, progress=False, **options))


def test_the_first_edit_of_a_fact_stays_and_the_others_are_listed() -> None:
    def case(name: str, subject: str, relation: str | None, new: str, words: str = "is") -> Case:
        return Case(name, EditRequest(f"{subject} {words}", subject, new, relation=relation), ())

    cases = [
        case("1", "France", "P1", "big"), case("2", "France", "P1", "small", "looks"),
        case("3", "France", "P2", "small", "seems"), case("4", "Spain", None, "big"), case("5", "Spain", None, "big"),
        Case("6", None, (), refused="no subject"), case("7", "France", "P3", "small"),
    ]  # fmt: skip
    kept, left_out = without_conflicts(cases)
    assert [case.id for case in kept] == ["1", "3", "4", "6"]
    reasons = [("2", "contradicts case 1"), ("5", "repeats case 4"), ("7", "contradicts case 1")]  # 7: the same prompt
    assert [(case.id, reason) for case, reason in left_out] == reasons


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"step": 0}, "follow nothing"),
        ({"fixed": 0}, "follow nothing"),
        ({"checkpoints": (0, 5)}, "before the first edit"),
        ({"factor": 0.5}, "without any edit"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(options: dict, said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        SequentialPlan(**options)


def test_a_batch_of_one_is_a_single_edit(toy_model: tracer.LanguageModel) -> None:
    cases = simple_cases(3)
    ((size, scores),) = batch_edits(Examination(toy_model, QUICK), RankOne(), cases, [1], progress=False)
    (single,) = single_edits(Examination(toy_model, QUICK), RankOne(), cases[:1], progress=False)
    assert size == 1 and [case.after for case in scores] == [single.after]


def test_batches_write_all_their_cases_at_once_and_leave_nothing(toy_model: tracer.LanguageModel) -> None:
    before, editor = toy_model.fingerprint(), RankOne()
    found = dict(batch_edits(Examination(toy_model, QUICK), editor, simple_cases(4), [1, 4], progress=False))
    assert editor.calls == [1, 4] and [len(scores) for scores in found.values()] == [1, 4]
    assert toy_model.fingerprint() == before
    table = batch_summary(found)
    assert set(table["size"]) == {1, 4}
    assert table.loc[table["size"] == 4, "n"].max() == 4


def test_a_batch_that_fails_fails_for_all_its_cases(toy_model: tracer.LanguageModel) -> None:
    ((_, scores),) = batch_edits(Examination(toy_model, QUICK), Refuses(), simple_cases(2), [2], progress=False)
    assert [case.diagnostics for case in scores] == [{"not_editable": "no subject"}] * 2


@pytest.mark.parametrize(
    ("cases", "sizes", "said"),
    [
        (simple_cases(2), [3], "Ask for 1 to 2 at once"),
        (simple_cases(2), [0], "Ask for 1 to 2 at once"),
        ([counterfact_case({**RECORD, "case_id": n}, str(n)) for n in (1, 2)], [2], "repeats case 1"),
    ],
)
def test_batches_that_cannot_be_are_refused(toy_model, cases, sizes, said) -> None:
    with pytest.raises(EvaluationError, match=said):
        list(batch_edits(Examination(toy_model, QUICK), Planted(), cases, sizes, progress=False))


def test_an_editor_that_forgets_has_the_retention_that_was_planted(toy_model: tracer.LanguageModel) -> None:
    points = sequence(toy_model, Dictated(memory=2), simple_cases(5, "Constantinople"))
    matrix = retention_matrix(points, "reliability_tf_exact")
    for k in range(1, 6):
        planted = [float(j > k - 2) if j <= k else math.nan for j in range(1, 6)]
        assert matrix.loc[k].tolist() == pytest.approx(planted, nan_ok=True)
    assert [point.last("reliability_tf_exact") for point in points] == [1] * 5
    kept = [1, 1, 2 / 3, 1 / 2, 2 / 5]
    assert [point.retention("reliability_tf_exact") for point in points] == pytest.approx(kept)
    assert [point.fixed[0].after["locality_agreement"] for point in points] == [1] * 5


def test_a_sequence_measures_the_weights_change_and_puts_them_back(toy_model: tracer.LanguageModel) -> None:
    cases, editor = simple_cases(4), RankOne(scale=0.01)
    weight = toy_model.torch.get_parameter(toy_model.anatomy.value_weight_name(1))
    before, fingerprint, at = weight.detach().clone(), toy_model.fingerprint(), []
    plan = SequentialPlan(checkpoints=(2,), factor=1e9)
    points = []
    for point in sequential_edits(Examination(toy_model, QUICK), editor, cases, plan, progress=False):
        points.append(point)
        at.append(float((weight.detach() - before).norm() / before.norm()))
        assert sum(len(edit.before) for edit in toy_model.edits) == 1  # one copy is enough for any number of edits
    assert [point.edits for point in points] == [2, 4]
    assert [next(iter(point.relative_change.values())) for point in points] == pytest.approx(at)
    assert toy_model.fingerprint() == fingerprint and toy_model.edits == []


def test_steps_write_several_edits_together_and_a_checkpoint_inside_moves_to_their_end(toy_model) -> None:
    editor = RankOne(scale=0.01)
    points = sequence(toy_model, editor, simple_cases(5), dataclasses.replace(EACH, step=2, checkpoints=(3,)))
    assert editor.calls == [2, 2, 1]
    assert [(point.edits, point.step) for point in points] == [(4, 2), (5, 1)]


def test_locality_compares_with_the_model_before_the_first_edit(toy_model: tracer.LanguageModel) -> None:
    cases, strong = simple_cases(2), RankOne(scale=0.3)
    points = sequence(toy_model, strong, cases, dataclasses.replace(EACH, fixed=1))
    neighbour = cases[0].staying
    (before,) = target_scores(toy_model, neighbour)
    with strong.apply(toy_model, [cases[0].request]), strong.apply(toy_model, [cases[1].request]):
        (after,) = target_scores(toy_model, neighbour)
    assert after.nll != before.nll
    fixed = points[-1].fixed
    assert len(fixed) == 1 and fixed[0].after["locality_agreement"] == after.agree(before)
    assert fixed[0].before["neighborhood_nll"] == pytest.approx(before.nll)
    assert fixed[0].after["neighborhood_nll"] == pytest.approx(after.nll)


def test_the_alarm_stops_a_sequence_at_the_last_good_checkpoint(toy_model: tracer.LanguageModel, tmp_path) -> None:
    class Ruins(RankOne):
        def apply(self, model, requests, *, seed=0, progress=None):
            if len(self.calls) == 3:
                return Planted({"French": 50.0}).apply(model, requests)
            return super().apply(model, requests)

    plan = SequentialPlan(checkpoints=(2, 4), factor=1.5, stop=True)
    fingerprint, points, now = toy_model.fingerprint(), [], []
    with pytest.warns(EditingWarning, match="losing its language"):
        examination = Examination(toy_model, QUICK)
        for point in sequential_edits(examination, Ruins(1e-6), simple_cases(6), plan, folder=tmp_path, progress=False):
            points.append(point)
            now.append(toy_model.fingerprint())
    assert [(point.edits, point.text.collapsed, point.stopped) for point in points] == [
        (2, False, False), (4, True, True)
    ]  # fmt: skip
    assert now[0] == now[1] != fingerprint == toy_model.fingerprint()
    assert sorted(path.name for path in (tmp_path / "edits").iterdir()) == ["000001.safetensors", "000002.safetensors"]


def test_cases_that_cannot_be_edited_fail_in_a_sequence_too(toy_model: tracer.LanguageModel) -> None:
    cases = [*simple_cases(1), Case("x", None, simple_cases(2)[1].groups, refused="no subject")]
    points = sequence(toy_model, RankOne(scale=0.01), cases)
    assert points[-1].scores[1].diagnostics == {"not_editable": "no subject"}
    assert points[-1].scores[1].after["reliability_token_acc"] == 0 and points[-1].scores[0].editable


class Breaks(Planted):
    """An editor after which the model gives NaN."""

    def apply(self, model, requests, *, seed=0, progress=None):
        edit = super().apply(model, requests)
        edit.handles = [*edit.handles, model.anatomy.head.register_forward_hook(lambda *said: said[2] * math.nan)]
        return edit


def test_a_model_that_turns_to_nan_is_lost_by_every_protocol(toy_model: tracer.LanguageModel) -> None:
    cases, questions = simple_cases(2), Questions(text=2, free=False)
    single = list(single_edits(Examination(toy_model, questions), Breaks(), cases, progress=False))
    ((_, batch),) = batch_edits(Examination(toy_model, questions), Breaks(), cases, [2], progress=False)
    with pytest.warns(EditingWarning):
        (point,) = sequence(toy_model, Breaks(), cases, SequentialPlan(checkpoints=(2,)))
    assert toy_model.edits == [] and point.text.collapsed and point.text.ratio == MOST_RATIO
    table = sequential_summary([point]).set_index("score")
    assert table.loc["perplexity_ratio", ["mean", "n"]].to_list() == [MOST_RATIO, 1]
    assert table.loc["text_kl", "n"] == 0
    changed, stayed = point.scores[0].after, point.fixed[0].after
    for case in (*single, *batch):
        assert case.editable and "NaN" in case.diagnostics["lost"]
        shares = {name for name in case.after if name.endswith(("acc", "exact", "agreement", "accuracy"))}
        assert {case.after[name] for name in shares} == {0.0} and "locality_agreement" in shares
        assert case.after["perplexity_ratio"] == MOST_RATIO and math.isnan(case.after["text_kl"])
        assert math.isnan(case.after["reliability_nll"]) and math.isnan(case.after["locality_kl"])
        both = {name: value for name, value in case.after.items() if name not in GENERAL_TEXT}
        assert both == pytest.approx({**changed, **stayed}, nan_ok=True)


def test_what_is_not_asked_is_no_score_of_a_failure_either(toy_model: tracer.LanguageModel) -> None:
    for editor in (Refuses(), Breaks()):
        examination = Examination(toy_model, Questions(free=False, kl=False))
        for case in single_edits(examination, editor, simple_cases(2), progress=False):
            assert "locality_agreement" in case.after and "locality_kl" not in case.after


def test_a_sequence_writes_texts_of_its_edits_and_none_of_the_fixed_cases(toy_model: tracer.LanguageModel) -> None:
    cases = [dataclasses.replace(case, samples=("The people of",)) for case in simple_cases(2)]
    examination = Examination(toy_model, Questions(writing=True, free=False, kl=False))
    (point,) = sequential_edits(examination, RankOne(), cases, SequentialPlan(checkpoints=(2,)), progress=False)
    assert list(sequential_summary([point]).query("score == 'fluency'")["when"]) == ["before", "after"]
    assert all("fluency" in case.after for case in point.scores)
    assert not any("fluency" in case.after for case in point.fixed)


def test_a_refused_case_shares_the_perplexity_of_its_batch(toy_model: tracer.LanguageModel) -> None:
    cases = [*simple_cases(1), Case("x", None, simple_cases(2)[1].groups, refused="no subject")]
    examination = Examination(toy_model, Questions(text=2, free=False))
    ((_, (written, refused)),) = batch_edits(examination, RankOne(scale=3), cases, [2], progress=False)
    assert refused.after["reliability_token_acc"] == 0 and not refused.editable
    assert [refused.after[name] for name in GENERAL_TEXT] == [written.after[name] for name in GENERAL_TEXT]
    assert written.after["perplexity_ratio"] != 1


def test_the_table_of_a_sequence_has_retention_and_last_edit_side_by_side(toy_model) -> None:
    table = sequential_summary(sequence(toy_model, Dictated(memory=1), simple_cases(3, "Constantinople")))
    rows = table[(table["edits"] == 3) & (table["score"] == "reliability_tf_exact")].set_index("when")
    assert rows.loc["after", ["mean", "last", "n"]].to_list() == [pytest.approx(100 / 3), 100, 3]
    assert rows.loc["before", ["mean", "n"]].to_list() == [0, 3] and np.isnan(rows.loc["before", "last"])
    ratio = table[(table["edits"] == 3) & (table["score"] == "perplexity_ratio")].iloc[0]
    assert ratio["mean"] == pytest.approx(1)


def test_kept_edits_are_applied_again_bit_for_bit(toy_model: tracer.LanguageModel, tmp_path) -> None:
    first, again = RankOne(scale=0.05), RankOne(scale=0.05)
    cases, states = simple_cases(3), []
    for editor in (first, again):
        examination = Examination(toy_model, QUICK)
        for _ in sequential_edits(examination, editor, cases, EACH, folder=tmp_path, progress=False):
            states.append(toy_model.fingerprint())
    assert (first.calls, again.calls) == ([1, 1, 1], [])
    assert states[:3] == states[3:]
    assert torch.isfinite(next(toy_model.torch.parameters())).all()


class InTurn(RankOne):
    """Computes edits of a sequence ahead, some at a time."""

    def in_turn(self, model, requests, *, seed=0, progress=None):
        edits = [self.apply(model, [request]) for request in requests]
        self.calls[-len(requests) :] = [len(requests)]
        undo_all(edits)
        return edits


@pytest.mark.parametrize("stopped", [None, 1, 3, 5])
def test_edits_computed_ahead_are_those_made_one_by_one_also_after_a_stop(toy_model, tmp_path, monkeypatch, stopped):
    """A run that goes on in the middle of what was computed together computes the same together again."""
    monkeypatch.setattr("editing.evaluation.sequential.AHEAD", 4)
    cases, plain, ahead = simple_cases(6), RankOne(0.05), InTurn(0.05)
    cases[4] = Case("x", None, cases[4].groups, refused="no subject")
    expected = sequence(toy_model, plain, cases)
    if stopped is not None:
        examination = Examination(toy_model, QUICK)
        run = sequential_edits(examination, InTurn(0.05), cases, EACH, folder=tmp_path, progress=False)
        for _ in range(stopped):
            next(run)
        run.close()
        assert toy_model.edits == []
    found = sequence(toy_model, ahead, cases, folder=tmp_path)
    assert ahead.calls == {None: [4, 1], 1: [4, 1], 3: [4, 1], 5: [1]}[stopped]
    for point, other in zip(found, expected, strict=True):
        assert [case.after for case in point.scores] == [case.after for case in other.scores]
        assert point.relative_change == other.relative_change
    assert [case.together for case in found[-1].scores] == [4, 4, 4, 4, 1, 1]
    assert toy_model.edits == []


def test_an_edit_computed_ahead_for_another_model_is_made_on_this_one(toy_model, tmp_path) -> None:
    """As when a run goes on after edits that were kept and are not, to the bit, those computed again."""
    cases = simple_cases(3)
    run = sequential_edits(Examination(toy_model, QUICK), RankOne(0.04), cases, EACH, folder=tmp_path, progress=False)
    next(run)
    run.close()
    editor = InTurn(0.05)
    found = sequence(toy_model, editor, cases, folder=tmp_path)
    assert editor.calls == [3, 1, 1] and all(case.editable for case in found[-1].scores)


def test_an_edit_whose_file_is_gone_is_made_again_as_it_was(toy_model: tracer.LanguageModel, tmp_path) -> None:
    cases = simple_cases(5)
    first = sequence(toy_model, InTurn(0.05), cases, folder=tmp_path)
    (tmp_path / "edits" / "000002.safetensors").unlink()
    again = sequence(toy_model, InTurn(0.05), cases, folder=tmp_path)
    assert [case.after for case in again[-1].scores] == [case.after for case in first[-1].scores]
    (tmp_path / "edits" / "000002.safetensors").unlink()
    other = sequence(toy_model, RankOne(0.04), cases, folder=tmp_path)  # after which those kept do not fit
    assert all(case.editable for case in other[-1].scores)


def test_cases_of_one_id_have_their_own_edits(toy_model: tracer.LanguageModel) -> None:
    cases = [dataclasses.replace(case, id="a") for case in simple_cases(3)]
    expected = list(single_edits(Examination(toy_model, QUICK), RankOne(), simple_cases(3), progress=False))
    found = list(single_edits(Examination(toy_model, QUICK), RankOne(), cases, progress=False))
    assert [case.after for case in found] == [case.after for case in expected]
