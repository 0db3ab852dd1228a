"""Readers, the metrics of a case, single edits by planted editors, and what a table says of them."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from planted import RECORD, Dictated, Planted, RankOne, Refuses, simple_cases

import tracer
from editing import FT, ROME, CovarianceError, EditRequest, RequestError
from editing.datasets.benchmarks import counterfact_case
from editing.datasets.case import COMPUTED_TOGETHER
from editing.edit import Edit
from editing.editors import EDITORS, editor_named
from editing.errors import EvaluationError
from editing.evaluation import (
    Ask,
    Case,
    CaseScores,
    Examination,
    Group,
    Questions,
    paired_difference,
    read_benchmark,
    single,
    single_edits,
    summary,
)
from editing.evaluation.summary import edit_seconds, harmonic_mean
from editing.evaluation.tables import as_latex, as_markdown, readable, shown
from editing.metrics.matches import gen_contains, gen_exact
from editing.metrics.of_cases import case_metrics
from editing.scoring.scores import TargetScore
from tracer.errors import SiteError

CASE = counterfact_case(RECORD, "3")
ZSRE = {
    "src": "What university did Watts Humphrey attend?",
    "subject": "Watts Humphrey",
    "rephrase": "Where did Watts Humphrey study?",
    "answers": ["Illinois Institute of Technology", "IIT"],
    "alt": " Stanford",
    "loc": "nq question: who plays the father",
    "loc_ans": "Hugo Weaving",
}


def scored(model, editor, cases=(CASE,), **questions) -> list[CaseScores]:
    examination = Examination(model, Questions(**questions))
    return list(single_edits(examination, editor, list(cases), progress=False, verify_every=1))


def test_a_run_that_goes_on_makes_the_chunks_of_an_undisturbed_one(toy_model, monkeypatch) -> None:
    def chunks(cases: Sequence[int]) -> list[list[int]]:
        seen: list[list[int]] = []
        monkeypatch.setattr(single, "_chunk", lambda _examination, _editor, some, _seed: seen.append(list(some)) or [])
        list(single_edits(SimpleNamespace(model=toy_model), None, cases, progress=False))
        return seen

    whole = chunks(range(250))
    for done in (0, 1, 50, 99, 100, 104, 107, 249):
        again = single.begin_of_chunk(done)
        assert chunks(range(again, 250)) == [chunk for chunk in whole if chunk[-1] >= done]


def written(folder: Path, records: list[dict], name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_a_counterfact_record_becomes_a_case() -> None:
    assert CASE.request == EditRequest(
        "The mother tongue of Angela Merkel is", "Angela Merkel", "French", "German", "3", "P103", 21
    )
    rewrite, paraphrase, neighborhood = CASE.groups
    assert rewrite.asks == (Ask("The mother tongue of Angela Merkel is", "French", "German"),)
    assert len(paraphrase.asks) == 2 and not paraphrase.stays
    assert neighborhood.asks[0].target == "German" and neighborhood.asks[0].other == "French" and neighborhood.stays
    assert CASE.topic == ("P103", "Q150") and len(CASE.samples) == 2


def test_zsre_teaches_the_true_answer_or_the_false_one_and_says_which(tmp_path: Path) -> None:
    path = written(tmp_path, [ZSRE, {**ZSRE, "alt": None}])
    taught, surveyed = read_benchmark(path), read_benchmark(path, benchmark="zsre-survey")
    assert (taught.target, surveyed.target) == ("answers[0]", "alt")
    assert taught.cases[0].request.new == "Illinois Institute of Technology"
    assert surveyed.cases[0].request.new == "Stanford"
    assert (len(taught.cases), len(surveyed.cases), surveyed.left_out) == (2, 1, {"alt is empty": 1})
    assert taught.cases[0].groups[2].asks[0].prompt == "nq question: who plays the father?"
    assert surveyed.cases[0].groups[2].asks[0].prompt == "nq question: who plays the father"
    asked = written(tmp_path, [{**ZSRE, "loc": "nq question: who?"}], "asked.json")
    assert read_benchmark(asked).cases[0].groups[2].asks[0].prompt.count("?") == 1


def test_the_last_occurrence_of_a_subject_is_edited(tmp_path: Path) -> None:
    record = {**ZSRE, "src": "Watts Humphrey asks: where was Watts Humphrey born?"}
    (case,) = read_benchmark(written(tmp_path, [record])).cases
    assert case.request.fact.character_span[1] == len("Watts Humphrey asks: where was Watts Humphrey")


def test_a_flat_record_becomes_a_case(tmp_path: Path) -> None:
    record = {
        "case_id": 2, "prompt": "Toko Yasuda, the", "target_new": "piano", "subject": "Toko Yasuda",
        "ground_truth": "guitar", "rephrase_prompt": "Toko Yasuda is incredible at",
        "locality_prompt": "John Lennon performs on the", "locality_ground_truth": "guitar",
    }  # fmt: skip
    path = tmp_path / "flat.json.gz"
    path.write_bytes(gzip.compress(json.dumps([record]).encode()))
    benchmark = read_benchmark(path)
    (case,) = benchmark.cases
    assert benchmark.name == "counterfact-flat" and case.id == "2"
    assert [group.asks[0].target for group in case.groups] == ["piano", "piano", "guitar"]
    assert case.groups[1].asks[0].prompt == "Toko Yasuda is incredible at"


def test_a_slice_is_taken_from_the_start_or_evenly(tmp_path: Path) -> None:
    path = written(tmp_path, [{**RECORD, "case_id": number} for number in range(10)])
    assert [case.id for case in read_benchmark(path, n=3).cases] == ["0", "1", "2"]
    assert [case.id for case in read_benchmark(path, n=3, evenly=True).cases] == ["0", "3", "6"]


def test_cases_edited_together_are_as_many_as_asked_for_and_edit_different_facts(tmp_path: Path) -> None:
    subjects = ["Paris", "Paris", "Rome", "Oslo", "Oslo", "Bern"]
    records = [
        {"case_id": number, "prompt": f"{subject} is in", "subject": subject, "target_new": f"N{number}",
         "ground_truth": "T", "rephrase_prompt": f"Where is {subject}?", "locality_prompt": "Lyon is in",
         "locality_ground_truth": "France"}
        for number, subject in enumerate(subjects)
    ]  # fmt: skip
    path = written(tmp_path, records)
    assert [case.id for case in read_benchmark(path, n=3).cases] == ["0", "1", "2"]
    assert [case.id for case in read_benchmark(path, n=3, together=True).cases] == ["0", "2", "3"]
    assert [case.id for case in read_benchmark(path, n=3, evenly=True, together=True).cases] == ["0", "2", "4"]
    most = read_benchmark(path, n=6, together=True)
    assert [case.id for case in most.cases] == ["0", "2", "3", "5"]
    assert most.left_out == {"edits a fact of an earlier record again": 2}


def rewritten(**changes) -> dict:
    """`RECORD` with another request."""
    return {**RECORD, "requested_rewrite": {**RECORD["requested_rewrite"], **changes}}


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"question": "who?"}], "is of no known format"),
        ([], "is of no known format"),
        ([RECORD, RECORD], "several records with case_id 3"),
        ([{**ZSRE, "alt": None}], "holds no case for zsre-survey"),
        ([{**RECORD, "requested_rewrite": {}}], "record 0: no 'prompt'"),
        ([RECORD, ["no", "record"]], "record 1 is none of counterfact"),
        ([{**ZSRE, "answers": "Paris"}], r"record 0 is none of zsre: answers is 'Paris', no list of texts"),
        ([{**ZSRE, "loc_ans": None}], "loc_ans is None, no text"),
        ([{**ZSRE, "answers": []}], "'the answer to write is empty': 1"),
        ([{**ZSRE, "alt": 3}], "none of zsre-survey: alt is 3, no text"),
        ([{**RECORD, "paraphrase_prompts": "Go to"}], "paraphrase_prompts is 'Go to', no list of texts"),
        ([{**RECORD, "paraphrase_prompts": [1]}], r"paraphrase_prompts is \[1\], no list of texts"),
        ([rewritten(prompt="France is")], "'France is', without {} for the subject"),
        ([rewritten(target_true=None)], "requested_rewrite is {.*which has no target_true.str"),
        ([rewritten(target_new={"str": 5})], "requested_rewrite.target_new.str is 5, no text"),
        ([rewritten(target_new={"str": " "})], "'the answer to write is empty': 1"),
    ],
)
def test_a_file_that_gives_no_cases_is_refused(tmp_path: Path, records: list[dict], said: str) -> None:
    benchmark = "zsre-survey" if "survey" in said else None
    with pytest.raises(EvaluationError, match=said):
        read_benchmark(written(tmp_path, records), benchmark=benchmark)


@pytest.mark.parametrize(
    ("text", "answer", "same"),
    [
        (" US", "U.S.", True),
        ("The O'Brien", "OBrien", True),
        ("New-York.", "new york", True),
        ("1,000", "1000", True),
        ("C", "C++", False),
        (".", "A", False),
        ("", "The", False),
    ],
)
def test_answers_are_compared_without_punctuation_and_articles(text: str, answer: str, same: bool) -> None:
    assert gen_exact(text, answer) == gen_contains(text, answer) == same


def test_every_metric_by_hand() -> None:
    case = Case("1", None, (
        Group("rewrite", (Ask("a", "new", "old"),)),
        Group("paraphrase", (Ask("b", "new", "old"), Ask("c", "new", "old"))),
        Group("neighborhood", (Ask("d", "old", "new"),), stays=True),
    ))  # fmt: skip
    scores = {
        ("a", "new"): TargetScore(2.0, (1, 2), (1, 3)), ("a", "old"): TargetScore(2.0, (4,), (5,)),
        ("b", "new"): TargetScore(1.0, (1, 2), (1, 2)), ("b", "old"): TargetScore(0.5, (4,), (5,)),
        ("c", "new"): TargetScore(6.0, (1, 2), (8, 2)), ("c", "old"): TargetScore(1.0, (4,), (5,)),
        ("d", "old"): TargetScore(3.0, (6, 7, 8), (6, 7, 9)), ("d", "new"): TargetScore(4.0, (1, 2), (1, 2)),
    }  # fmt: skip
    base = {**scores, ("d", "old"): TargetScore(3.0, (6, 7, 8), (0, 7, 9))}
    found = case_metrics(case, scores, base=base, divergences={("d", "old"): 0.25}, texts={
        "a": " new.", "b": " a new one", "c": " old"})  # fmt: skip
    assert found == pytest.approx({
        "ES": 1.0, "PS": 0.0, "NS": 1.0,  # b: 0.5 = 0.5 is a tie and no success; d: 3/3 < 4/2
        "efficacy_magnitude": math.exp(-1) - math.exp(-2),
        "paraphrase_magnitude": (math.exp(-0.5) - math.exp(-0.5) + math.exp(-3) - math.exp(-1)) / 2,
        "neighborhood_magnitude": math.exp(-1) - math.exp(-2),
        "reliability_token_acc": 0.5, "reliability_tf_exact": 0.0, "reliability_gen_exact": 1.0,
        "reliability_gen_contains": 1.0, "reliability_nll": 1.0, "reliability_nll_sum": 2.0,
        "generalization_token_acc": 0.75, "generalization_tf_exact": 0.5, "generalization_gen_exact": 0.0,
        "generalization_gen_contains": 0.5, "generalization_nll": 1.75, "generalization_nll_sum": 3.5,
        "specificity_accuracy": 2 / 3, "specificity_exact": 0.0, "neighborhood_nll": 1.0,
        "neighborhood_nll_sum": 3.0, "locality_agreement": 2 / 3, "locality_agreement_exact": 0.0,
        "locality_kl": 0.25,
    })  # fmt: skip


def test_a_tie_is_a_failure_in_both_directions() -> None:
    groups = (Group("rewrite", (Ask("a", "new", "old"),)), Group("neighborhood", (Ask("a", "old", "new"),), True))
    same = {("a", "new"): TargetScore(1.0, (1,), (1,)), ("a", "old"): TargetScore(1.0, (2,), (1,))}
    found = case_metrics(Case("1", None, groups), same)
    assert (found["ES"], found["NS"]) == (0, 0)


def test_an_editor_that_changes_nothing_has_the_scores_of_before(family_model: tracer.LanguageModel) -> None:
    (case,) = scored(family_model, Planted(), writing=True, snippets={("P103", "Q150"): ["French is spoken"]})
    shared = {name: case.after[name] for name in case.before}
    assert shared == pytest.approx(dict(case.before), abs=1e-9)
    assert case.after["locality_agreement"] == case.after["locality_agreement_exact"] == 1
    assert case.after["locality_kl"] == pytest.approx(0, abs=1e-12)
    assert case.before["fluency"] > 0 and "consistency" in case.before


def test_an_editor_that_always_says_the_new_answer_loses_the_neighbourhood(toy_model) -> None:
    first = {word: toy_model.tokenizer(f" {word}").input_ids for word in ("French", "German")}
    assert first["French"][0] != first["German"][0]
    cases = scored(toy_model, Planted({"French": 1e3}))
    after = cases[0].after
    assert (after["ES"], after["PS"], after["NS"]) == (1, 1, 0)
    assert after["efficacy_magnitude"] > 0 > after["neighborhood_magnitude"]
    assert after["locality_kl"] > 1
    assert summary(cases).set_index(["when", "score"]).loc[("after", "S"), "mean"] == 0
    assert toy_model.edits == []


def test_specificity_and_agreement_differ_where_the_base_is_wrong(toy_model: tracer.LanguageModel) -> None:
    (case,) = scored(toy_model, Planted({"French": 1e3}), simple_cases(1))  # its neighbour's answer is "French"
    one_token = len(toy_model.tokenizer(" French").input_ids)
    assert case.before["specificity_accuracy"] == 0
    assert case.after["specificity_accuracy"] == pytest.approx(1 / one_token)
    assert case.after["locality_agreement"] < 1


def test_an_editor_with_a_memory_is_scored_by_what_the_model_says(toy_model: tracer.LanguageModel) -> None:
    cases = simple_cases(3, answer="Constantinople")
    for case in scored(toy_model, Dictated(), cases, free=False):
        assert case.before["reliability_tf_exact"] == 0
        assert case.after["reliability_tf_exact"] == case.after["locality_agreement_exact"] == 1
        assert case.after["reliability_nll"] == pytest.approx(0, abs=1e-9)


def test_a_case_without_prompts_of_a_kind_leaves_that_score_out(toy_model) -> None:
    record = {**RECORD, "paraphrase_prompts": [], "neighborhood_prompts": []}
    (case,) = scored(toy_model, Planted(), [counterfact_case(record, "1")])
    assert "ES" in case.after and not {"PS", "NS", "locality_agreement"} & set(case.after)


def test_a_case_that_cannot_be_edited_fails_where_it_should_show_and_is_untouched_elsewhere(toy_model) -> None:
    missing = {**RECORD["requested_rewrite"], "prompt": "Who speaks so?", "subject": "Angela Merkel"}
    refused = counterfact_case({**RECORD, "requested_rewrite": {**missing, "prompt": "{} is"}}, "4")
    assert refused.request is not None
    nowhere = Case("5", None, CASE.groups, refused="The subject is not in the prompt.")
    cases = scored(toy_model, Refuses(), [CASE, nowhere])
    for case, reason in zip(cases, ("no subject", "The subject is not in the prompt."), strict=True):
        assert case.diagnostics == {"not_editable": reason}
        assert case.after["ES"] == case.after["PS"] == case.after["reliability_token_acc"] == 0
        assert case.after["NS"] == case.before["NS"] and case.after["locality_agreement"] == 1
    assert summary(cases, editable_only=True).empty


@pytest.mark.parametrize(
    ("editor", "error", "said"),
    [
        (ROME(layer=9), SiteError, "has layers 0 to 3"),
        (FT(layer=9), SiteError, "has layers 0 to 3"),
        (ROME(layer=1, context_plan=(), steps=2, tokens=10), CovarianceError, "tokens=256"),
    ],
)
def test_settings_that_no_case_can_be_blamed_for_are_no_failures_of_cases(toy_model, editor, error, said) -> None:
    cases = simple_cases(2)
    with pytest.raises(error, match=said):
        list(single_edits(Examination(toy_model, Questions(free=False)), editor, cases, progress=False))
    assert toy_model.edits == []


@pytest.mark.parametrize("kind", ["hook", "weight"])
def test_an_editor_that_leaves_something_behind_is_found(toy_model: tracer.LanguageModel, kind: str) -> None:
    class Leaves(Planted):
        def apply(self, model, requests, *, seed=0, progress=None) -> Edit:
            if kind == "hook":
                model.anatomy.head.register_forward_hook(lambda *_: None)
            else:
                model.torch.get_parameter(model.anatomy.value_weight_name(0)).data.mul_(1.001)
            return super().apply(model, requests)

    with pytest.raises(EvaluationError, match="left 1 hooks" if kind == "hook" else "bit for bit"):
        scored(toy_model, Leaves())


def test_a_consumer_that_stops_leaves_the_model_unedited(toy_model: tracer.LanguageModel) -> None:
    scores = single_edits(Examination(toy_model), Planted({"French": 1.0}), simple_cases(2), progress=False)
    next(scores)
    assert toy_model.edits == []
    scores.close()


def test_edits_that_are_computed_together_score_as_alone(toy_model: tracer.LanguageModel) -> None:
    together, alone = RankOne(), RankOne()
    alone.each = None
    cases = [*simple_cases(3), Case("not editable", None, CASE.groups, refused="no subject")]
    options = {"progress": False, "chunk": 4}
    first = list(single_edits(Examination(toy_model), together, cases, **options))
    second = list(single_edits(Examination(toy_model), alone, cases, **options))
    assert (together.calls, alone.calls) == ([3], [1, 1, 1])
    assert [case.after for case in first] == [case.after for case in second]
    assert [case.together for case in first] == [3, 3, 3, 1] and {case.together for case in second} == {1}
    assert all(case.after != case.before for case in first)


def test_the_summary_is_the_mean_over_cases() -> None:
    cases = [
        CaseScores("1", {"ES": 0.0, "PS": 0.5, "NS": 1.0}, {"ES": 1.0, "PS": 0.5, "NS": 0.8, "locality_kl": 0.1}),
        CaseScores("2", {"ES": 0.0, "PS": 0.0, "NS": 1.0}, {"ES": 1.0, "PS": 1.0, "NS": 0.4, "locality_kl": 0.3}),
        CaseScores("3", {"ES": 0.0, "NS": 1.0}, {"ES": 0.5, "NS": 0.6}),
    ]
    table = summary(cases).set_index(["when", "score"])
    assert table.loc[("after", "ES"), "mean"] == pytest.approx(100 * 2.5 / 3)
    assert table.loc[("after", "PS"), "mean"] == pytest.approx(75)
    assert table.loc[("after", "PS"), "n"] == 2
    assert table.loc[("after", "NS"), "half_width"] == pytest.approx(196 * 0.2 / math.sqrt(3))
    assert table.loc[("after", "S"), "mean"] == pytest.approx(100 * 3 / (3 / 2.5 + 1 / 0.75 + 1 / 0.6))
    assert table.loc[("before", "S"), "mean"] == 0
    assert table.loc[("after", "locality_kl"), "mean"] == pytest.approx(0.2)


def test_the_interval_of_s_is_that_of_its_parts_where_they_are_one() -> None:
    values = np.random.RandomState(0).uniform(0.2, 1, 200)
    equal = summary([CaseScores(str(at), {}, dict.fromkeys(("ES", "PS", "NS"), float(value)))
                     for at, value in enumerate(values)]).set_index("score")["half_width"]  # fmt: skip
    assert equal["S"] == pytest.approx(equal["ES"], rel=0.1)  # the harmonic mean of three equal means is the mean
    again = np.random.RandomState(1).permutation(values)
    apart = summary([CaseScores(str(at), {}, {"ES": value, "PS": 0.6, "NS": 0.6})
                     for at, value in enumerate(again)]).set_index("score")  # fmt: skip
    slope = (apart["mean"]["S"] / apart["mean"]["ES"]) ** 2 / 3  # dS / dES by the definition of S
    assert apart["half_width"]["S"] == pytest.approx(slope * apart["half_width"]["ES"], rel=0.1)
    alone = summary([CaseScores("1", {}, {"ES": 1.0, "PS": 1.0, "NS": 1.0})]).set_index("score")
    assert np.isnan(alone["half_width"]["S"])


def test_the_interval_by_hand() -> None:
    cases = [CaseScores(str(n), {}, {"ES": value}) for n, value in enumerate((0.0, 1.0, 1.0, 1.0))]
    row = summary(cases).iloc[0]
    assert (row["mean"], row["n"]) == (75, 4)
    assert row["half_width"] == pytest.approx(100 * 1.96 * 0.5 / 2)  # s^2 = (0.75^2 + 3 * 0.25^2) / 3


def test_harmonic_means_by_hand() -> None:
    assert harmonic_mean([100, 50, 50]) == pytest.approx(60)
    assert harmonic_mean([1, 0, 1]) == 0


def test_a_difference_is_paired_by_case() -> None:
    random = np.random.RandomState(0)
    level = random.rand(40)
    first = [CaseScores(str(n), {}, {"ES": v + 0.1, "PS": 1.0, "NS": 0.5}) for n, v in enumerate(level)]
    second = [CaseScores(str(n), {}, {"ES": v, "PS": 1.0, "NS": 0.5}) for n, v in enumerate(level)][::-1]
    found = paired_difference(first, [*second, CaseScores("only here", {}, {"ES": 1.0})], "ES", resamples=500)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((10, 10, 10, 40))
    whole = paired_difference(first, second, "S", resamples=500)
    expected = harmonic_mean([level.mean() + 0.1, 1, 0.5]) - harmonic_mean([level.mean(), 1, 0.5])
    assert whole.mean == pytest.approx(100 * expected) and whole.low < whole.mean < whole.high
    with pytest.raises(EvaluationError, match="1 cases have ES"):
        paired_difference(first[:1], second, "ES")
    lost = CaseScores("0", {}, {"ES": math.nan, "PS": 1.0, "NS": 0.5})
    assert paired_difference([lost, *first[1:]], second, "ES", resamples=50).n == 39


def test_cases_of_one_group_are_drawn_together() -> None:
    first = [CaseScores(str(n), {}, {"ES": float(n % 4 < 2)}) for n in range(200)]
    second = [CaseScores(str(n), {}, {"ES": 0.0}) for n in range(200)]
    alone = paired_difference(first, second, "ES", resamples=2000)
    pairs = paired_difference(first, second, "ES", groups={str(n): str(n // 2) for n in range(200)}, resamples=2000)
    width = 2 * 1.96 * 50  # per cent, over the root of the number of draws
    assert alone.mean == pairs.mean == 50 and alone.n == pairs.n == 200
    assert alone.high - alone.low == pytest.approx(width / 200**0.5, rel=0.1)
    assert pairs.high - pairs.low == pytest.approx(width / 100**0.5, rel=0.1)
    uneven = {str(n): "all" if n < 100 else str(n) for n in range(200)}
    assert paired_difference(first, second, "ES", groups=uneven, resamples=200).mean == 50


def test_seconds_leave_out_the_first_edits() -> None:
    cases = [CaseScores(str(n), {}, {}, seconds=value) for n, value in enumerate((9.0, 9.0, 1.0, 2.0, 3.0))]
    assert edit_seconds(cases) == (2, 1.5, 2.5, 3)


def test_seconds_leave_out_the_first_edits_that_were_computed_at_once() -> None:
    def computed(seconds: float, together: int) -> CaseScores:
        return CaseScores("", {}, {}, {COMPUTED_TOGETHER: together}, seconds)

    first, second = [computed(9.0, 3)] * 3, [computed(1.0, 2)] * 2
    assert edit_seconds([*first, *second]) == (1, 1, 1, 2)
    assert edit_seconds(first) == (9, 9, 9, 1)  # nothing else is known


def test_an_edit_is_timed_without_its_scoring(toy_model: tracer.LanguageModel) -> None:
    import time

    class Sleeps(Planted):
        def apply(self, model, requests, *, seed=0, progress=None) -> Edit:
            time.sleep(0.05)
            return super().apply(model, requests)

    median = edit_seconds(scored(toy_model, Sleeps(), simple_cases(5), free=False))[0]
    assert 0.05 <= median < 0.15  # with the fingerprint that every edit takes


def test_tables_say_the_same_in_markdown_and_latex() -> None:
    cases = [CaseScores(str(n), {"ES": 0.0}, {"ES": value}) for n, value in enumerate((0.0, 1.0, 1.0, 1.0))]
    table = readable(summary(cases))
    assert as_markdown(table).splitlines() == [
        "| score | before | after | n |", "| --- | --- | --- | --- |", "| ES | 0.0 | 75.0 ± 49.0 | 4 |"
    ]  # fmt: skip
    assert r"ES & 0.0 & 75.0 $\pm$ 49.0 & 4 \\" in as_latex(table)


def test_numbers_are_shown_as_their_kind_of_score_needs() -> None:
    assert shown("ES", 5.1667, 3.273) == "5.2 ± 3.3"
    assert shown("perplexity_ratio", 1.0011, 0.0021) == "1.001 ± 0.002"
    assert shown("perplexity_ratio", 1.8368e11, 7.56e10) == "1.8e+11 ± 7.6e+10"
    assert shown("ES", 100.0, 0.0) == shown("ES", 100.0, math.nan) == "100.0"  # no half-width, or none known


@pytest.mark.parametrize("name", [name for name in EDITORS if name not in ("mend", "ke")])  # which want training
def test_every_editor_is_made_by_name(toy_model: tracer.LanguageModel, name: str) -> None:
    layer = {"kn": None, "t-patcher": 3, "ike": None, "memprompt": None, "mello": None, "serac": None}.get(name, 2)
    editor = editor_named(name, toy_model, layer)
    layers = getattr(editor, "layers", (getattr(editor, "layer", layer),))
    assert callable(editor.apply) and (layer in layers or name == "t-patcher")


def test_settings_of_an_editor_are_given_by_name(toy_model: tracer.LanguageModel) -> None:
    assert editor_named("rome", toy_model, 1, clamp=2.0).clamp == 2
    assert editor_named("memit", toy_model, layers=(0, 2)).layers == (0, 2)
    assert editor_named("ft-m", toy_model).layer == 3


@pytest.mark.parametrize(
    ("name", "layer", "settings", "said"),
    [
        ("memory", 1, {}, "There is no editor 'memory'"),
        ("r-rome", 1, {"depth": 3}, "r-rome has no setting 'depth'. Choose from clamp, "),
        ("memit", None, {}, "Which layer"),
        ("kn", 1, {}, "leave layer=1 out"),
    ],
)
def test_an_editor_that_cannot_be_made_says_why(toy_model, name, layer, settings, said) -> None:
    with pytest.raises(RequestError, match=said):
        editor_named(name, toy_model, layer, **settings)
