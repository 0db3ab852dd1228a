"""MQuAKE's scores, counted by hand on answers that the test dictates."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from planted import Planted, Refuses
from remembering import reading_model
from transformers import PreTrainedTokenizerFast

import tracer
from editing import MEMIT, MeLLo, MemPrompt
from editing.datasets import mquake
from editing.datasets.mquake import MultiHop, Question, is_mquake, read_hops, read_mquake
from editing.errors import EvaluationError
from editing.evaluation import multi_hop
from editing.evaluation.multi_hop import MultiHopScores, multi_hop_scores
from editing.evaluation.multi_hop_run import evaluate_hops
from editing.memory.mello import Reasoned
from editing.memory.memory import memory_of
from editing.request import EditRequest
from tracer.errors import AnatomyError

WHOLE = {
    "case_id": 7,
    "requested_rewrite": [
        {
            "prompt": "The maker of {} is",
            "relation_id": "P176",
            "target_new": {"str": "SpaceX"},
            "target_true": {"str": "Ford"},
            "subject": "Thunderbird",
        }
    ],
    "questions": ["Who founded the maker?", "By whom was it founded?", "Its maker's founder?"],
    "answer": "Henry Ford",
    "answer_alias": [],
    "new_answer": "Elon Musk",
    "new_answer_alias": ["Musk"],
    "new_single_hops": [
        {"question": "Who makes it?", "answer": "SpaceX", "answer_alias": []},
        {"question": "Who founded SpaceX?", "answer": "Elon Musk", "answer_alias": []},
    ],
}
REDUCED = {
    "case_id": 2,
    "edits": [{"prompt": "Aslan was created by", "target_new": "Ada", "target_new_alias": []}],
    "questions": ["Where was Aslan's creator born?"],
    "new_answer": "London",
    "new_answer_alias": [],
}


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    return reading_model(tokenizer)


def dictated(monkeypatch, said: dict[str, str | None], asked: list[str]) -> None:
    """MeLLo's answers, by question."""

    def reason(self, model, questions):
        asked.extend(questions)
        return [Reasoned(said.get(question), "", (), 1) for question in questions]

    monkeypatch.setattr(MeLLo, "reason", reason)
    monkeypatch.setattr(MeLLo, "routes", lambda self, model, memory, prompts: [None] * len(prompts))


def scores(model, monkeypatch, said: dict[str, str | None]) -> tuple[MultiHopScores, list[str]]:
    asked: list[str] = []
    dictated(monkeypatch, said, asked)
    (found,) = multi_hop_scores(model, MeLLo(), [mquake._whole(WHOLE)], progress=False)
    return found, asked


def test_both_forms_of_the_file_are_read(tmp_path) -> None:
    path = tmp_path / "mquake.json"
    path.write_text(json.dumps([WHOLE, REDUCED]))
    whole, reduced = read_mquake(path)
    assert whole.requests[0].prompt == "The maker of Thunderbird is" and whole.requests[0].relation == "P176"
    assert whole.question.right == ("Elon Musk", "Musk") and len(whole.hops) == 2
    assert whole.before is not None and whole.before.right == ("Henry Ford",)
    assert reduced.requests[0].new == "Ada" and not reduced.hops and reduced.before is None
    assert len(read_mquake(path, n=1)) == 1
    path.write_text(json.dumps([{**REDUCED, "case_id": at} for at in range(7)]), encoding="utf-8")
    assert [case.id for case in read_mquake(path, n=3, evenly=True)] == ["0", "2", "4"]
    assert [case.id for case in read_mquake(path, n=3)] == ["0", "1", "2"]
    slices = [read_hops(path, n=3, evenly=evenly).slice for evenly in (True, False)]
    assert slices == ["every 2nd 3 of 7", "first 3 of 7"]
    path.write_text("[{}]")
    with pytest.raises(EvaluationError, match="record 0: no 'edits'"):
        read_mquake(path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"questions": "Who?"}, "'questions' is 'Who\\?', not a list of 1 or more"),
        ({"questions": []}, "'questions' is"),
        ({"requested_rewrite": []}, "'requested_rewrite' is"),
        ({"new_answer_alias": "Musk"}, "'new_answer_alias' is 'Musk', not a list"),
        ({"requested_rewrite": [{**WHOLE["requested_rewrite"][0], "prompt": "Its maker is"}]}, "The subject"),
    ],
)
def test_what_is_no_case_is_named(tmp_path, changed: dict, said: str) -> None:
    path = tmp_path / "mquake.json"
    path.write_text(json.dumps([REDUCED, {**WHOLE, **changed}]))
    with pytest.raises(EvaluationError, match=f"record 1, is no case of MQuAKE: .*{said}"):
        read_mquake(path)


def test_cases_of_one_id_are_refused(tmp_path) -> None:
    (tmp_path / "mquake.json").write_text(json.dumps([WHOLE, {**REDUCED, "case_id": "7"}]))
    with pytest.raises(EvaluationError, match="several cases with case_id 7"):
        read_mquake(tmp_path / "mquake.json")


def test_an_editor_that_leaves_something_or_cannot_edit_the_model_ends_the_run(model, tmp_path) -> None:
    class Leaves(Planted):
        def apply(self, model, requests, *, seed=0, progress=None):
            model.torch.register_forward_hook(lambda *_: None)
            return super().apply(model, requests, seed=seed)

    class Cannot:
        def apply(self, model, requests, *, seed=0, progress=None):
            raise AnatomyError("no such part")

    (tmp_path / "mquake.json").write_text(json.dumps([REDUCED]))
    benchmark = read_hops(tmp_path / "mquake.json")
    with pytest.raises(AnatomyError, match="no such part"):
        evaluate_hops(model, Cannot(), benchmark, tmp_path / "cannot", progress=False)
    with pytest.raises(EvaluationError, match="Write together=1"):
        evaluate_hops(model, Planted(), dataclasses.replace(benchmark, together=0), tmp_path / "none", progress=False)
    with pytest.raises(EvaluationError, match="left 1 hooks"):
        evaluate_hops(model, Leaves(), benchmark, tmp_path / "leaves", progress=False)


def test_any_phrasing_and_any_alias_will_do_and_the_rest_is_not_asked(model, monkeypatch) -> None:
    said = {"By whom was it founded?": "Musk", "Who makes it?": "SpaceX", "Who founded SpaceX?": "elon musk."}
    found, asked = scores(model, monkeypatch, said)
    assert (found.multi_hop, found.multi_hop_exact, found.instance_wise, found.base) == (1, 1, 1, 0)
    first, second = WHOLE["questions"][:2]  # after the base's three; all that are open at once
    assert asked[3:] == [first, "Who makes it?", "Who founded SpaceX?", second]
    assert found.unanswered == 1 / 4


def test_one_wrong_hop_fails_the_instance(model, monkeypatch) -> None:
    said = dict.fromkeys(WHOLE["questions"], "Henry Ford") | {"Who makes it?": "SpaceX", "Who founded SpaceX?": "Ada"}
    found, _ = scores(model, monkeypatch, said)
    assert (found.multi_hop, found.instance_wise, found.base, found.unanswered) == (0, 0, 1, 0)


def test_an_answer_in_other_letters_is_right_but_not_exact(model, monkeypatch) -> None:
    found, asked = scores(model, monkeypatch, {WHOLE["questions"][0]: "the elon-musk"})
    assert (found.multi_hop, found.multi_hop_exact) == (1, 0)
    assert asked.count(WHOLE["questions"][2]) == 2  # every phrasing, before and after


def test_no_answer_is_wrong_and_counted(model, monkeypatch) -> None:
    found, _ = scores(model, monkeypatch, {})
    assert (found.multi_hop, found.instance_wise, found.unanswered) == (0, 0, 1)


def test_a_case_never_sees_edits_of_another_group(model: tracer.LanguageModel, monkeypatch) -> None:
    cases = [
        MultiHop(str(n), (EditRequest(f"The maker of {name} is", name, "Ada"),), Question((name,), ("x",)))
        for n, name in enumerate(("Thunderbird", "Mustang", "Corolla"))
    ]
    seen: dict[str, list[str]] = {}
    editor = MemPrompt()

    def watching(model, prompts):
        memory = memory_of(model, editor)
        seen.update((prompt, [record.subject for record in memory.records] if memory else []) for prompt in prompts)
        return ["x"] * len(prompts)

    monkeypatch.setattr(multi_hop, "answers", watching)
    found = list(multi_hop_scores(model, editor, cases, group=2, progress=False))
    both = ["Thunderbird", "Mustang"]
    assert seen == {"Thunderbird": both, "Mustang": both, "Corolla": ["Corolla"]}
    assert [score.multi_hop for score in found] == [1, 1, 1] and not model.edits
    assert math.isnan(found[0].instance_wise) and math.isnan(found[0].base)


def test_a_plain_editors_model_reads_answered_questions_first(model: tracer.LanguageModel, monkeypatch) -> None:
    read: list[str] = []

    def reading(_model, prompts):
        read.extend(prompts)
        return ["Elon Musk"] * len(prompts)

    monkeypatch.setattr(multi_hop, "answers", reading)
    (found,) = multi_hop_scores(model, Planted(), [mquake._whole(WHOLE)], progress=False)
    assert read[-1].endswith("Q: Who founded SpaceX? A:") and read[-1].count("Q: ") == 4
    assert found.multi_hop == 1 and found.instance_wise == 0


def test_the_first_of_contradicting_edits_in_a_group_is_written() -> None:
    case, other = mquake._whole(WHOLE), mquake._whole({**WHOLE, "case_id": 8})
    assert mquake.without_repeats([case, other]) == list(case.requests)


def test_an_editor_that_needs_a_subject_refuses_the_file_without_subjects(model, tmp_path) -> None:
    path = tmp_path / "mquake.json"
    path.write_text(json.dumps([REDUCED]), encoding="utf-8")
    with pytest.raises(
        EvaluationError, match="MEMIT writes at the subject's last token, and the edits of this reduced"
    ):
        evaluate_hops(model, MEMIT(layers=(1,)), read_hops(path), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_groups_of_none_are_refused(model: tracer.LanguageModel) -> None:
    with pytest.raises(EvaluationError, match="Write group=1"):
        next(multi_hop_scores(model, MeLLo(), [], group=0))


def test_cases_in_a_folder_are_kept_a_record_each_and_not_asked_again(model, tmp_path) -> None:
    path = tmp_path / "mquake.json"
    whole = [WHOLE, {**WHOLE, "case_id": 8}, {**REDUCED, "questions": ["Where was Aslan's creator born?"]}]
    path.write_text(json.dumps(whole), encoding="utf-8")
    benchmark = read_hops(path, together=2)
    assert is_mquake(path) and (benchmark.slice, len(benchmark.cases)) == ("first 3 of 3", 3)
    first = evaluate_hops(model, Planted(), benchmark, tmp_path / "run", progress=False)
    expected = list(multi_hop_scores(model, Planted(), benchmark.cases, group=2, progress=False))
    for found, by_hand in zip(first.cases, expected, strict=True):
        assert found.after["edit_wise"] == by_hand.edit_wise and found.after["multi_hop"] == by_hand.multi_hop
        assert found.before.get("multi_hop", math.nan) == pytest.approx(float(by_hand.base), nan_ok=True)
    assert "instance_wise" not in first.cases[2].after
    again = evaluate_hops(model, Refuses(), benchmark, tmp_path / "other", progress=False)
    assert {case.diagnostics["not_editable"] for case in again.cases} == {"no subject"}
    assert [case.after["multi_hop"] for case in again.cases] == [0, 0, 0]
    assert not any("unanswered" in case.after for case in again.cases)
    assert [case.before for case in again.cases] == [case.before for case in first.cases]
    lines = (tmp_path / "run" / "cases.jsonl").read_text("utf-8")
    once_more = evaluate_hops(model, Planted(), benchmark, tmp_path / "run", progress=False)
    assert [case.after for case in once_more.cases] == [case.after for case in first.cases]
    assert (tmp_path / "run" / "cases.jsonl").read_text("utf-8") == lines
