"""Texts in a training: read together and once, run on from the lowest edited block, their drift by its equation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tokenizer
from families import FAMILIES
from test_families import DENSE
from test_mend import QUICK, REQUESTS, Killed, killed_after, small_model, small_records
from torch.nn import functional

import tracer
from editing import MEND, TrainingPlan
from editing.meta_learning import training
from editing.meta_learning.divergence import divergence
from editing.meta_learning.states import states_entering
from editing.meta_learning.texts import texts_of, texts_of_each
from editing.scoring.scores import target_scores
from tracer.facts import bundled


@pytest.mark.parametrize("family", DENSE)
def test_texts_read_up_to_a_block_and_on_from_there_score_as_whole_passes(family: str) -> None:
    """Rows of other lengths, more of them than were recorded to learn how blocks are called; drift is 0."""
    model = tracer.load(FAMILIES[family].build(), tokenizer=make_tokenizer(bos=True), check=False)
    said = ((fact.prompt, fact.answer) for fact in bundled())
    pairs = [pair for pair in said if len(model.tokenizer(" ".join(pair)).input_ids) < 24][:40:8]
    assert len({len(model.tokenizer(prompt).input_ids) for prompt, _ in pairs}) > 1
    expected = [score.nll for score in target_scores(model, pairs)]
    for layer in (0, 2):
        first, second = texts_of_each(model, layer, (pairs[:1], pairs))
        bound = 1e-5 if family == "Gemma 2" or FAMILIES[family].bound > 1e-9 else 1e-9  # attention in float32
        assert first.scores()[0].tolist() == pytest.approx(expected[:1], abs=bound)
        assert second.scores()[0].tolist() == pytest.approx(expected, abs=bound)
        assert second.kept().drift().abs().max() < bound


def test_a_block_that_is_told_more_of_a_text_than_its_states_is_recorded_anew(toy_model, monkeypatch) -> None:
    pairs = [(request.prompt, request.new) for request in REQUESTS]
    expected = texts_of(toy_model, 1, pairs).scores()[0]
    monkeypatch.setattr("editing.meta_learning.states.BY_POSITION", ("hidden_states",))  # so masks are of the text
    torch.testing.assert_close(texts_of(toy_model, 1, pairs).scores()[0], expected, rtol=0, atol=1e-12)


def in_rounds(folder: Path | None = None) -> Any:
    """Three rounds over 15 records, two passes a step; the fourth step begins the second round."""
    plan = TrainingPlan(steps=8, batch=5, together=3, every=2, held_out=5)
    records = [dataclasses.replace(one, rephrases=(*one.rephrases, f"Yes: {one.prompt}")) for one in small_records(20)]
    return MEND(**QUICK).fit(small_model(), records, plan=plan, folder=folder, seed=2)


def test_a_training_killed_in_a_later_round_goes_on_to_the_same_network(tmp_path: Path, monkeypatch) -> None:
    whole = in_rounds()
    with monkeypatch.context() as patched:
        killed_after(5, patched)
        with pytest.raises(Killed):
            in_rounds(tmp_path)
    cut = in_rounds(tmp_path)
    assert str(cut.trained) == str(whole.trained) and cut.trained.result.curve == whole.trained.result.curve


def test_texts_that_come_again_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the first round; a shelf without room gives the same losses, to rounding."""
    read: list[tuple[int, ...]] = []
    monkeypatch.setattr(training, "states_entering", lambda *given: reads(read, *given))
    kept = in_rounds().trained.result.curve
    first, once = read[:45], len(read)  # 3 texts of each of 15 records
    assert [read.count(ids) for ids in first] == [1] * 45
    assert once < 45 + 15 * 2, "of later rounds only other words"
    monkeypatch.setattr("editing.meta_learning.training.MOST_BYTES", 0)
    for one, other in zip(kept, in_rounds().trained.result.curve, strict=True):
        assert {name: other[name] for name in one} == pytest.approx(one, rel=1e-9)
    assert len(read) - once == 8 * 5 * 3


def reads(seen: list[tuple[int, ...]], model: tracer.LanguageModel, layer: int, rows: Any) -> Any:
    some = set(rows)
    seen += some
    return states_entering(model, layer, some)


def test_the_divergence_and_its_gradient_are_those_of_its_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    before, now = (3 * torch.randn(37, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = torch.randn(37, generator=generator, dtype=torch.float64)
    found, expected = now.clone().requires_grad_(), now.clone().requires_grad_()
    slow = functional.kl_div(expected.log_softmax(-1), before.log_softmax(-1), reduction="none", log_target=True).sum(
        -1
    )
    fast = divergence(before, found)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    for of, leaf in ((fast, found), (slow, expected)):
        (of * weights).sum().backward()
        assert leaf.grad is not None
    torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=1e-12)
