"""Edits that leave the weights alone: attached, read, saved and taken off through the one `Edit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import pytest
import torch
from torch import Tensor

import tracer
from editing import BaseModelError, EditFailedError, EditRequest, load_edit, unedited
from editing.attachment import Attachment
from editing.edit import Edit
from editing.model_folder import merge
from editing.scoring.asking import Route, come_last, routes
from editing.scoring.generation import answers, complete, seeded_samples
from editing.scoring.scores import target_scores
from tracer.model.prompt_ends import prompt_ends, prompts_end_at

PROMPT = "The capital of France is"
REQUESTS = (EditRequest("The capital of {} is", "France", " Rome"),)
PAIRS = [(PROMPT, " Paris"), (PROMPT, " Rome"), ("The capital of", " France")]


class Push(Attachment, kind="push of a test"):
    """Adds a vector to what the last block gives at the token where the prompt ends."""

    def __init__(self, vector: Tensor) -> None:
        self.vector = vector

    def attach(self, model: tracer.LanguageModel) -> Callable[[], None]:
        def pushed(_module, _args, output):
            hidden = output if isinstance(output, Tensor) else output[0]
            hidden = hidden.clone()
            hidden[torch.arange(len(hidden)), prompt_ends(model.torch, *hidden.shape[:2])] += self.vector.to(hidden)
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        return model.anatomy.blocks[-1].register_forward_hook(pushed).remove

    def tensors(self) -> dict[str, Tensor]:
        return {"vector": self.vector}

    def about(self) -> dict[str, Any]:
        return {"length": len(self.vector)}

    @classmethod
    def restored(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        assert about["length"] == len(tensors["vector"])
        return cls(tensors["vector"])


class Twice:
    """Reads a prompt that names a word as that prompt written twice."""

    def __init__(self, word: str) -> None:
        self.word = word

    def routes(self, model: tracer.LanguageModel, prompts: Sequence[str]) -> list[Route | None]:
        return [Route(f"{prompt} {prompt}", model) if self.word in prompt else None for prompt in prompts]


@pytest.fixture
def edit(toy_model: tracer.LanguageModel) -> Edit:
    vector = torch.randn(toy_model.d_model, generator=torch.Generator().manual_seed(0)) * 3
    return Edit(REQUESTS, (), {"method": "push"}, toy_model.fingerprint(), attachments=(Push(vector),))


def test_an_attachment_moves_the_scores_and_undo_brings_them_back(toy_model: tracer.LanguageModel, edit: Edit) -> None:
    before, base = target_scores(toy_model, PAIRS), toy_model.fingerprint()
    with edit.apply(toy_model):
        assert all(now.nll != old.nll for now, old in zip(target_scores(toy_model, PAIRS), before, strict=True))
        assert toy_model.fingerprint() != base
        with unedited(toy_model):
            assert target_scores(toy_model, PAIRS) == before and toy_model.fingerprint() == base
        assert target_scores(toy_model, PAIRS) != before
    assert target_scores(toy_model, PAIRS) == before and toy_model.fingerprint() == base


def test_a_saved_attachment_acts_as_the_first_one_did(toy_model: tracer.LanguageModel, edit: Edit, tmp_path) -> None:
    with edit.apply(toy_model):
        expected = target_scores(toy_model, PAIRS)
        edit.save(tmp_path / "edit.safetensors")
        again = load_edit(tmp_path / "edit.safetensors")
        with pytest.raises(BaseModelError, match="now it has 1 edit"):
            again.apply(toy_model)
    with again.apply(toy_model):
        assert target_scores(toy_model, PAIRS) == expected


def test_edits_beside_the_weights_are_undone_in_any_order(toy_model: tracer.LanguageModel, edit: Edit) -> None:
    before = target_scores(toy_model, PAIRS)
    edit.apply(toy_model)
    other = Edit(
        REQUESTS, (), {"method": "push"}, toy_model.fingerprint(), attachments=(Push(-edit.attachments[0].vector),)
    )
    other.apply(toy_model)
    edit.undo()
    other.undo()
    assert target_scores(toy_model, PAIRS) == before and toy_model.edits == []


def test_a_branch_learns_where_each_prompt_ends(toy_model: tracer.LanguageModel, edit: Edit) -> None:
    """One-token targets meet the push; of a longer target only the first token does."""
    tokenizer = toy_model.tokenizer
    assert tokenizer is not None
    before = {}
    target_scores(toy_model, PAIRS, visit=lambda pair, place, odds: before.update({(pair, place): odds.clone()}))
    after = {}
    with edit.apply(toy_model):
        target_scores(toy_model, PAIRS, visit=lambda pair, place, odds: after.update({(pair, place): odds.clone()}))
    assert any(place for _, place in before)
    for (pair, place), odds in before.items():
        assert torch.allclose(odds, after[pair, place], atol=1e-5) == bool(place)


def test_without_being_told_a_prompt_ends_at_the_last_token(toy_model: tracer.LanguageModel) -> None:
    assert prompt_ends(toy_model.torch, 2, 7).tolist() == [6, 6]
    with prompts_end_at(toy_model, [2, 4]):
        assert prompt_ends(toy_model.torch, 2, 7).tolist() == [2, 4]
    assert prompt_ends(toy_model.torch, 2, 7).tolist() == [6, 6]


def test_a_reader_decides_on_the_prompt_alone_for_scores_and_texts(toy_model: tracer.LanguageModel) -> None:
    twice = f"{PROMPT} {PROMPT}"
    expected = target_scores(toy_model, [(twice, " Paris"), (twice, " Rome"), PAIRS[2]])
    texts, first = complete(toy_model, [twice, "Italy"]), answers(toy_model, [twice, "Italy"])
    come_last(toy_model, Twice("is"))
    try:
        assert target_scores(toy_model, PAIRS) == expected
        assert complete(toy_model, [PROMPT, "Italy"]) == texts and answers(toy_model, [PROMPT, "Italy"]) == first
        sampled = seeded_samples(toy_model, [PROMPT], ["a"], length=12)[0]
        assert sampled.startswith(PROMPT) and not sampled.startswith(twice)
    finally:
        toy_model.readers.clear()
    assert routes(toy_model, [PROMPT]) == [Route(PROMPT, toy_model)]


def test_the_reader_that_came_last_is_asked_first(toy_model: tracer.LanguageModel) -> None:
    class Whole:
        def routes(self, model: tracer.LanguageModel, prompts: Sequence[str]) -> list[Route | None]:
            return [Route("whole", model)] * len(prompts)

    twice = Twice("is")
    try:
        for reader in (twice, Whole(), twice):
            come_last(toy_model, reader)
        assert [route.prompt for route in routes(toy_model, ["it is", "none"])] == ["it is it is", "whole"]
    finally:
        toy_model.readers.clear()


def test_what_leaves_the_weights_alone_cannot_be_merged(toy_model: tracer.LanguageModel, edit: Edit, tmp_path) -> None:
    with edit.apply(toy_model), pytest.raises(EditFailedError, match="nothing to merge"):
        merge(edit, tmp_path / "merged")
