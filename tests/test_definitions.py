"""Every metric that a run emits is explained, and the two public meanings of locality have two names."""

from __future__ import annotations

import pytest
from planted import RECORD, RankOne
from typer.testing import CliRunner

import tracer
from editing import EditRequest
from editing.cli import app
from editing.comparison.properties import PROPERTIES
from editing.datasets.benchmarks import counterfact_case
from editing.datasets.choices import with_choices
from editing.errors import EvaluationError
from editing.evaluation import (
    Ask,
    Case,
    Examination,
    Group,
    Questions,
    SequentialPlan,
    batch_edits,
    batch_summary,
    sequential_edits,
    sequential_summary,
    single_edits,
    summary,
)
from editing.evaluation.multi_hop import MultiHopScores
from editing.metrics.definitions import DEFINITIONS, GROUPS, definition


def every_group() -> Case:
    """A CounterFact case with a group of every kind."""
    case = counterfact_case(RECORD, "1")
    stays = {"other_relation", "distracting_neighborhood", "relation_specificity", "forgetfulness"}
    others = [name for name in GROUPS if name not in {group.name for group in case.groups} | {"other_task"}]
    more = [Group(name, (Ask("The capital of France is", "Paris", "Rome"),), name in stays) for name in others]
    whole = Case("1", case.request, (*case.groups, *more), case.samples, case.topic)
    return with_choices([whole], [Ask("To get there", "walk", "run")], 1)[0]


def test_every_metric_that_a_run_emits_is_explained(toy_model: tracer.LanguageModel) -> None:
    cases, editor = [every_group()], RankOne(scale=1e-3)
    questions = Questions(text=2, writing=True, snippets={("P103", "Q150"): ["French is spoken"]})
    single = summary(list(single_edits(Examination(toy_model, questions), editor, cases, progress=False)))
    batch = batch_summary(dict(batch_edits(Examination(toy_model, questions), editor, cases, [1], progress=False)))
    plan, quick = SequentialPlan(factor=1e9), Questions(free=False)
    points = list(sequential_edits(Examination(toy_model, quick), editor, cases, plan, progress=False))
    emitted = {*single["score"], *batch["score"], *sequential_summary(points)["score"]}
    emitted |= set(MultiHopScores.__dataclass_fields__) - {"case_id", "base"}
    assert len(emitted) > 100 and {"S", "relative_change", "consistency", "text_kl"} <= emitted
    assert emitted <= set(DEFINITIONS)


def test_a_batch_reads_the_text_once_and_says_so(toy_model: tracer.LanguageModel) -> None:
    requests = [EditRequest(f"The capital of {name} is", name, "Rome") for name in ("France", "Spain")]
    cases = [
        Case(request.subject, request, (Group("rewrite", (Ask(request.prompt, "Rome"),)),)) for request in requests
    ]
    examination = Examination(toy_model, Questions(text=2, free=False))
    table = batch_summary(dict(batch_edits(examination, RankOne(), cases, [2], progress=False)))
    rows = table[(table["when"] == "after")].set_index("score")
    assert (rows.loc["perplexity_ratio", "n"], rows.loc["reliability_nll", "n"]) == (1, 2)
    assert rows.loc["perplexity_ratio", "mean"] != 1


def test_the_two_meanings_of_locality_have_two_names() -> None:
    right, same = definition("specificity_accuracy"), definition("locality_agreement")
    assert "y_t" in right.formula and "p0" not in right.formula
    assert "p0" in same.formula and "y_t" not in same.formula
    assert "specificity_accuracy" in same.note


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ES", "Meng et al. 2022"),
        ("neighborhood_magnitude", "Meng et al. 2022"),
        ("reliability_token_acc", "Yao et al. 2023"),
        ("locality_agreement", "Yao et al. 2023"),
        ("specificity_accuracy", "Meng et al. 2023"),
        ("generalization_nll", "as measured here; the prompts: Meng et al. 2022"),
        ("reasoning_token_acc", "Zhang et al. 2024"),
        ("reasoning_nll", "as measured here; the prompts: Zhang et al. 2024"),
    ],
)
def test_the_source_is_that_of_the_statistic_and_not_of_its_prompts_alone(name: str, source: str) -> None:
    assert definition(name).source.startswith(source)


def test_a_wrong_name_is_answered_with_those_it_may_mean() -> None:
    with pytest.raises(EvaluationError, match="Did you mean .*reliability_token_acc"):
        definition("reliability_token_accuracy")
    with pytest.raises(EvaluationError, match="without a name lists them"):
        definition("@")


def test_the_command_prints_formula_and_source_or_all_names() -> None:
    told = CliRunner().invoke(app, ["explain-metric", "NS"])
    assert told.exit_code == 0 and "1[n(y) < n(z)]" in told.stdout and "Meng et al. 2022" in told.stdout
    assert "z: the answer it competes with" in told.stdout
    assert CliRunner().invoke(app, ["explain-metric"]).stdout.split() == list(DEFINITIONS | PROPERTIES)
    for column in ("n", "half_width", "not editable", "alarm"):
        assert CliRunner().invoke(app, ["explain-metric", column]).stdout.startswith(f"{column}\n  formula")
    told = CliRunner().invoke(app, ["explain-metric", "portability"])
    assert told.exit_code == 0 and "token accuracy on what follows from an edit" in told.stdout
    told = CliRunner().invoke(app, ["explain-metric", "fluency"]).stdout  # a metric and a property
    assert "H_n the entropy" in told and "As a property: entropy of texts after / before" in told
