"""What follows an edit and what must not: records become groups, and planted answers give planted scores."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from planted import RECORD, Planted, Refuses
from typer.testing import CliRunner

import tracer
from editing import EditRequest
from editing.cli import app
from editing.datasets.choices import read_choices, with_choices
from editing.datasets.portability import recalled
from editing.errors import EvaluationError
from editing.evaluation import Ask, Case, CaseScores, Examination, Group, Questions, read_benchmark, single_edits
from editing.evaluation.known_hops import with_known_hops
from editing.evaluation.plot import plot_single
from editing.evaluation.unedited import UneditedModel
from editing.metrics.of_cases import case_metrics
from editing.scoring.scores import TargetScore

HOP = {"Recalled Relation": "(French, spoken in, Paris)", "New Question": "Where do people speak as Angela Merkel did "
       "at home?", "New Answer": "Paris "}  # fmt: skip
ZSRE = {
    "subject": " Nebaioth ", "src": "Who is nebaioth's father?", "rephrase": "Who's Nebajoths Dad?",
    "pred": None, "alt": " Babur", "answers": ["Ishmael"], "cond": None,
}  # fmt: skip
KNOWEDIT = {
    "subject": "Goursez Vreizh", "prompt": "The country of Goursez Vreizh is", "target_new": "Franche-Comté",
    "portability": {
        "Reasoning": [{"prompt": "Its capital is", "ground_truth": [["Besançon", "Vesontio"], []]}],
        "Subject_Aliasing": [],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "Its founder is", "ground_truth": ["Jean", "Jean Le Fustec"]},
            {"prompt": "Its age is", "ground_truth": [[]]},
        ]
    },
}  # fmt: skip


def cases_of(folder: Path, *records: dict, **options) -> tuple[Case, ...]:
    path = folder / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return read_benchmark(path, **options).cases


def groups_of(case: Case) -> dict[str, Group]:
    return {group.name: group for group in case.groups}


def scored(model, editor, cases: list[Case], **questions) -> list[CaseScores]:
    return list(single_edits(Examination(model, Questions(**questions)), editor, cases, progress=False))


def test_counterfact_fields_for_portability_and_side_effects_become_groups(tmp_path: Path) -> None:
    record = {
        **RECORD, "portability": HOP, "alternative_subject": " Angela Dorothea Kasner",
        "unrelated_relation": {"relation_id": "instance of", "object": "human", "question": "What is she?"},
        "distracting_neighborhood_prompts": ["The mother tongue of Angela Merkel is French. Bach spoke"],
    }  # fmt: skip
    (case,) = cases_of(tmp_path, record)
    groups = groups_of(case)
    assert [name for name, group in groups.items() if group.stays] == [
        "neighborhood", "other_relation", "distracting_neighborhood"
    ]  # fmt: skip
    named = Ask("The mother tongue of Angela Dorothea Kasner is", "French", "German")
    assert groups["subject_replace"].asks == (named,)
    assert groups["one_hop"].asks == (Ask(HOP["New Question"], "Paris", hop=("French, spoken in", "Paris")),)
    assert groups["other_relation"].asks == (Ask("What is she?", "human"),)
    said = record["distracting_neighborhood_prompts"][0]
    assert groups["distracting_neighborhood"].asks == (Ask(said, "German", "French"),)


def test_zsre_portability_follows_the_false_answer_and_needs_no_neighbour(tmp_path: Path) -> None:
    record = {**ZSRE, "inverse question": "Who is the son of Babur?", "alter_subject_question": "Who is N.'s father?"}
    (case,) = cases_of(tmp_path, record)
    assert case.request == EditRequest("Who is nebaioth's father?", "nebaioth", "Babur", id="0")
    groups = groups_of(case)
    assert groups["reversed_relation"].asks == (Ask("Who is the son of Babur?", "nebaioth"),)
    assert groups["subject_replace"].asks == (Ask("Who is N.'s father?", "Babur"),)
    assert groups["neighborhood"].asks == ()
    with pytest.raises(EvaluationError, match="does not fit 'zsre'"):
        cases_of(tmp_path, record, benchmark="zsre")


def test_knowedit_kinds_become_groups_whatever_the_type_of_their_answers(tmp_path: Path) -> None:
    (new,) = cases_of(tmp_path, KNOWEDIT)
    (changed,) = cases_of(tmp_path, {**KNOWEDIT, "ground_truth": ["France"], "rephrase_prompt": "Where is it?"})
    assert (new.request.true, changed.request.true) == (None, "France")
    groups = groups_of(changed)
    assert groups["paraphrase"].asks == (Ask("Where is it?", "Franche-Comté", "France"),)
    assert groups["reasoning"].asks == (Ask("Its capital is", "Besançon", aliases=("Vesontio",)),)
    assert (
        groups["relation_specificity"].asks == (Ask("Its founder is", "Jean"),) and groups["relation_specificity"].stays
    )
    assert groups["subject_aliasing"].asks == ()


def test_whole_answers_count_with_the_best_alias_and_tokens_with_the_first() -> None:
    case = Case("1", None, (Group("reasoning", (Ask("a", "Besançon", aliases=("Vesontio",)),)),))
    scores = {("a", "Besançon"): TargetScore(2.0, (1, 2), (1, 3)), ("a", "Vesontio"): TargetScore(1.0, (4,), (4,))}
    found = case_metrics(case, scores, texts={"a": " Vesontio."})
    assert found == {
        "reasoning_token_acc": 0.5, "reasoning_tf_exact": 1, "reasoning_gen_exact": 1, "reasoning_gen_contains": 1,
        "reasoning_nll": 1, "reasoning_nll_sum": 2,
    }  # fmt: skip


def test_what_was_right_before_is_counted_apart() -> None:
    case = Case("1", None, (Group("other_relation", (Ask("a", "x"), Ask("b", "y")), stays=True),))
    base = {("a", "x"): TargetScore(1.0, (1, 2), (1, 2)), ("b", "y"): TargetScore(1.0, (3,), (9,))}
    now = {("a", "x"): TargetScore(1.0, (1, 2), (1, 5)), ("b", "y"): TargetScore(1.0, (3,), (3,))}
    found = case_metrics(case, now, base=base)
    assert (found["other_relation_kept"], found["other_relation_token_acc"]) == (0.5, 0.75)
    assert found["other_relation_agreement"] == (0.5 + 0) / 2
    assert "other_relation_kept" not in case_metrics(
        case, now, base={**base, ("a", "x"): TargetScore(1, (1, 2), (9, 2))}
    )


@pytest.mark.parametrize(
    ("relation", "new", "hop"),
    [
        ("(Tamil, official language of, Tamil Nadu)", "Tamil", ("Tamil, official language of", "Tamil Nadu")),
        ("(Washington, D.C., part of, America)", "Washington, D.C.", ("Washington, D.C., part of", "America")),
        ("(Fiat, headquartered in, Turin, Italy)", "Fiat", ("Fiat, headquartered in", "Turin, Italy")),
        ("(Tamil, Tamil Nadu)", "Tamil", None),
    ],
)  # fmt: skip
def test_a_recalled_relation_becomes_the_second_hop(relation: str, new: str, hop: tuple[str, str] | None) -> None:
    assert recalled(relation, new) == hop


def test_the_filter_keeps_exactly_the_questions_whose_hop_the_model_answers(tmp_path: Path) -> None:
    class Knows(UneditedModel):
        def __init__(self) -> None:
            pass

        def texts(self, prompts):
            return {prompt: " paris and Lyon." if prompt == "French, spoken in" else " nobody." for prompt in prompts}

    unknown = {**HOP, "Recalled Relation": "(French, written by, Voltaire)"}
    records = [{**RECORD, "portability": HOP}, {**RECORD, "case_id": 4, "portability": unknown}]
    cases = cases_of(tmp_path, *records)
    found, passed, asked = with_known_hops(Knows(), cases)
    assert (passed, asked) == (1, 2)
    assert [len(groups_of(case)["one_hop_known"].asks) for case in found] == [1, 0]
    assert [groups_of(case)["one_hop"] for case in found] == [groups_of(case)["one_hop"] for case in cases]


def test_choices_are_picked_by_mean_and_by_sum_of_nll() -> None:
    (case,) = with_choices([Case("1", None, ())], [Ask("goal", "right words", "wrong")], 1)
    scores = {
        ("goal", "right words"): TargetScore(3.0, (1, 2), (0, 0)),
        ("goal", "wrong"): TargetScore(2.0, (3,), (3,)),
    }
    found = case_metrics(case, scores, base=scores)
    assert found == {"other_task_accuracy": 1.0, "other_task_accuracy_sum": 0.0}  # 1.5 < 2 nats a token, 3 > 2 in all
    assert case.staying == []


def test_each_case_asks_the_next_choices() -> None:
    choices = [Ask(str(number), "a", "b") for number in range(5)]
    found = with_choices([Case(str(number), None, ()) for number in range(3)], choices, 2)
    assert [[ask.prompt for ask in case.groups[0].asks] for case in found] == [["0", "1"], ["2", "3"], ["4", "0"]]


def test_piqa_labels_say_which_answer_is_right(tmp_path: Path) -> None:
    path = tmp_path / "piqa.jsonl"
    record = {"goal": "boil an egg ", "sol1": " in water", "sol2": "in sand", "label": 1}
    path.write_text("\n".join(json.dumps({**record, "label": label}) for label in (0, 1)), encoding="utf-8")
    assert read_choices(path) == (Ask("boil an egg", "in water", "in sand"), Ask("boil an egg", "in sand", "in water"))
    for wrong in ({"label": 2}, {"label": "0"}, {"sol1": 3}, {"goal": None}):
        path.write_text(json.dumps({**record, **wrong}), encoding="utf-8")
        with pytest.raises(EvaluationError, match="record 0, is not a choice .* label, 0 or 1"):
            read_choices(path)


def test_an_editor_that_changes_nothing_leaves_every_side_effect_and_the_text(toy_model: tracer.LanguageModel) -> None:
    case = Case("1", EditRequest("The capital of France is", "France", "Rome"), (
        Group("rewrite", (Ask("The capital of France is", "Rome"),)),
        Group("other_relation", (Ask("The people of France speak", "French"),), stays=True),
    ))  # fmt: skip
    cases = with_choices([case], [Ask("The city of", "Paris", "Rome")], 1)
    for editor in (Planted(), Refuses()):
        (found,) = scored(toy_model, editor, cases, text=2)
        assert found.after["other_relation_agreement"] == 1 and found.after["perplexity_ratio"] == pytest.approx(1)
        assert found.after["text_kl"] == pytest.approx(0, abs=1e-9)
        assert found.after["other_task_accuracy"] == found.before["other_task_accuracy"]


def test_an_editor_that_always_answers_the_new_object_gives_it_up_everywhere(toy_model: tracer.LanguageModel) -> None:
    new = EditRequest("The country of Rome is", "Rome", "Germany")  # one token, as are Italy and Japan
    case = Case("1", new, (
        Group("subject_replace", (Ask("The country of the Eternal City is", "Germany"),)),
        Group("one_hop", (Ask("The country north of that of Rome is", "Italy"),)),
        Group("distracting_neighborhood", (Ask("Rome is in Germany. Tokyo is in", "Japan", "Germany"),), stays=True),
    ))  # fmt: skip
    cases = with_choices([case], [Ask("The country of", "Japan", "Germany")], 1)
    (found,) = scored(toy_model, Planted({"Germany": 1e3}), cases)
    assert found.after["subject_replace_token_acc"] == 1 and found.after["one_hop_token_acc"] == 0
    assert found.after["distracting_NS"] == found.after["distracting_neighborhood_agreement"] == 0
    assert found.after["other_task_accuracy"] == 0


@pytest.mark.filterwarnings("ignore::editing.errors.EditingWarning")  # one step is too few
def test_the_command_asks_for_choices_text_and_chosen_groups(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps([{**RECORD, "portability": HOP}]), encoding="utf-8")
    choice = {"goal": "boil an egg", "sol1": "in water", "sol2": "in sand", "label": 0}
    (tmp_path / "piqa.jsonl").write_text(json.dumps(choice), encoding="utf-8")
    command = ["evaluate", "--data", tmp_path / "data.json", "--editor", "ft", "--set", "steps=1", "--no-free"]
    command += ["--groups", "rewrite,one_hop", "--choices", tmp_path / "piqa.jsonl", "--text", "1", "--known-hops"]
    command += ["--model", model_folder, "--out", tmp_path / "run", "--quiet", "--json"]
    told = CliRunner().invoke(app, list(map(str, command)))
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    scores = {one["score"] for one in record["scores"] if one["when"] == "after"}
    assert {"ES", "one_hop_token_acc", "other_task_accuracy", "perplexity_ratio"} <= scores
    assert not {"PS", "NS"} & scores
    about = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    assert about["data"]["known_hops"] == [0, 1] and about["questions"]["text"] == 1
    assert "first 1 of 1 records" in (tmp_path / "run" / "table.md").read_text("utf-8")


def test_groups_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{**RECORD, "portability": HOP}]), encoding="utf-8")
    benchmark = read_benchmark(path)
    assert [group.name for group in benchmark.only(["one_hop", "rewrite"]).cases[0].groups] == ["rewrite", "one_hop"]
    assert benchmark.slice == "first 1 of 1"
    with pytest.raises(EvaluationError, match=r"no prompts two_hop. It has .*rewrite"):
        benchmark.only(["rewrite", "two_hop"])


def test_scores_of_no_known_family_have_a_figure(tmp_path: Path) -> None:
    table = pd.DataFrame({"score": ["one_hop_token_acc"] * 2, "when": ["before", "after"], "mean": [0.1, 0.2],
                          "half_width": [0.1, 0.1], "n": [3, 3]})  # fmt: skip
    (panel,) = plot_single(table).axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["one\nhop"]
