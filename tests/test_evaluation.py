"""Scores by hand arithmetic, planted editors with known scores, and the summary."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tracer
from editing import EditRequest, RequestError
from editing.edit import Edit
from editing.evaluation import CaseScores, evaluate_counterfact, summary, target_scores
from editing.evaluation.counterfact import harmonic_mean
from tracer.errors import FactError

RECORD = {
    "case_id": 3,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "subject": "Angela Merkel",
        "target_new": {"str": "French"},
        "target_true": {"str": "German"},
    },
    "paraphrase_prompts": ["Angela Merkel speaks", "At home Angela Merkel spoke"],
    "neighborhood_prompts": ["The mother tongue of Johann Sebastian Bach is"],
}


def test_a_score_is_the_mean_nll_of_the_targets_own_tokens(family_model: tracer.LanguageModel) -> None:
    prompt, target = "The capital of France is", "Constantinople"
    tokenizer = family_model.tokenizer
    ids = tokenizer(f"{prompt} {target}", return_tensors="pt").input_ids
    n = len(tokenizer(prompt).input_ids)
    with torch.inference_mode():
        logits = family_model.torch(ids).logits[0, n - 1 : -1].log_softmax(-1)
    by_hand = -logits.gather(1, ids[0, n:, None]).mean()
    (score,) = target_scores(family_model, [(prompt, target)])
    assert ids.shape[1] - n > 1
    assert score.nll == pytest.approx(float(by_hand), abs=1e-9)
    assert score.prob == pytest.approx(math.exp(-float(by_hand)))
    assert score.tf_exact == bool((logits.argmax(-1) == ids[0, n:]).all())


def test_batching_does_not_change_a_score(toy_model: tracer.LanguageModel) -> None:
    pairs = [(f"{'word ' * n}France is", "Paris") for n in range(1, 40)]
    together = target_scores(toy_model, pairs)
    alone = [target_scores(toy_model, [pair])[0] for pair in pairs]
    np.testing.assert_allclose([s.nll for s in together], [s.nll for s in alone], atol=1e-9)


def test_only_the_most_probable_continuation_is_exact(toy_model: tracer.LanguageModel) -> None:
    assert len(toy_model.tokenizer(" of").input_ids) == 1
    with Planted({"of": 1e3}).apply(toy_model, [EditRequest("France is", "France", "of")]):
        best, other = target_scores(
            toy_model, [("The capital of France is", "of"), ("The capital of France is", "the")]
        )
    assert best.tf_exact and best.prob == pytest.approx(1)
    assert not other.tf_exact


def test_a_blank_target_is_refused(toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(FactError, match="no tokens"):
        target_scores(toy_model, [("The capital of France is", " ")])


class Planted:
    """An editor that adds a bias to the logits of chosen words, and is undone like any other."""

    def __init__(self, bias: dict[str, float]) -> None:
        self.bias = bias

    def apply(self, model, requests, *, seed: int = 0, progress: bool | None = None) -> Edit:
        ids = {model.tokenizer(f" {word}").input_ids[0]: value for word, value in self.bias.items()}

        def shift(_module, _inputs, output):
            for token, value in ids.items():
                output[..., token] += value
            return output

        handle = model.anatomy.head.register_forward_hook(shift)
        edit = Edit(tuple(requests), (), {"method": "planted"}, model.fingerprint(), ({"relative_change": 0.0},))
        edit.start(model)
        undo = edit.undo
        edit.undo = lambda: (handle.remove(), undo())
        return edit


def test_an_editor_that_always_says_the_new_answer_loses_the_neighbourhood(toy_model) -> None:
    (case,) = evaluate_counterfact(toy_model, Planted({"French": 1e3}), [RECORD], progress=False)
    first = {word: toy_model.tokenizer(f" {word}").input_ids for word in ("French", "German")}
    assert first["French"][0] != first["German"][0]
    assert (case.after["ES"], case.after["PS"], case.after["NS"]) == (1, 1, 0)
    assert case.after["EM"] > 0 > case.after["NM"]


def test_an_editor_that_changes_nothing_has_the_scores_of_before(toy_model) -> None:
    (case,) = evaluate_counterfact(toy_model, Planted({}), [RECORD], progress=False)
    assert case.after == case.before
    assert case.after["ES"] == 1 - (case.after["EM"] < 0)
    assert toy_model.edits == []


def test_a_case_without_prompts_of_a_kind_leaves_that_score_out(toy_model) -> None:
    record = {**RECORD, "paraphrase_prompts": [], "neighborhood_prompts": []}
    (case,) = evaluate_counterfact(toy_model, Planted({}), [record], progress=False)
    assert set(case.after) == {"ES", "EM"}


def test_the_summary_is_the_mean_over_cases() -> None:
    cases = [
        CaseScores("1", {"ES": 0.0, "PS": 0.5, "NS": 1.0}, {"ES": 1.0, "PS": 0.5, "NS": 0.8}, {}),
        CaseScores("2", {"ES": 0.0, "PS": 0.0, "NS": 1.0}, {"ES": 1.0, "PS": 1.0, "NS": 0.4}, {}),
        CaseScores("3", {"ES": 0.0, "NS": 1.0}, {"ES": 0.5, "NS": 0.6}, {}),
    ]
    table = summary(cases).set_index(["when", "score"])
    assert table.loc[("after", "ES"), "mean"] == pytest.approx(100 * 2.5 / 3)
    assert table.loc[("after", "PS"), "mean"] == pytest.approx(75)
    assert table.loc[("after", "PS"), "n"] == 2
    assert table.loc[("after", "NS"), "half_width"] == pytest.approx(196 * 0.2 / math.sqrt(3))
    assert table.loc[("after", "S"), "mean"] == pytest.approx(100 * 3 / (3 / 2.5 + 1 / 0.75 + 1 / 0.6))
    assert table.loc[("before", "S"), "mean"] == 0


def test_the_harmonic_mean_of_a_zero_is_zero() -> None:
    assert harmonic_mean([1, 0, 1]) == 0
    assert harmonic_mean([1, 0.5]) == pytest.approx(2 / 3)


def test_a_counterfact_record_becomes_a_request() -> None:
    request = EditRequest.from_counterfact(RECORD)
    assert request == EditRequest(
        "The mother tongue of Angela Merkel is", "Angela Merkel", "French", "German", "3", None, 21
    )


def test_a_record_that_cannot_be_edited_is_a_failure_and_the_run_goes_on(toy_model: tracer.LanguageModel) -> None:
    class Refuses:
        def apply(self, model, requests, *, seed=0, progress=None):
            raise RequestError("no subject")

    first, second = evaluate_counterfact(toy_model, Refuses(), [RECORD, RECORD], progress=False)
    assert (first.after["ES"], first.after["PS"], first.after["NS"]) == (0, 0, first.before["NS"])
    assert second.diagnostics == {"not_editable": "no subject"}


def test_a_consumer_that_stops_leaves_the_model_unedited(toy_model: tracer.LanguageModel) -> None:
    scores = evaluate_counterfact(toy_model, Planted({"French": 1.0}), [RECORD, RECORD], progress=False)
    next(scores)
    assert toy_model.edits == []
