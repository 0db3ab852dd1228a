"""Edits that stand beside the weights, several at once: equal stacks answer alike, however they came about."""

from __future__ import annotations

import copy
import functools
import math
import warnings

import pytest
import torch
from remembering import MADRID, PROMPTS, ROME, reading_model
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import tracer
from editing import (
    GRACE,
    IKE,
    SERAC,
    BaseModelError,
    CaliNet,
    EditFailedError,
    EditingWarning,
    EditRequest,
    MemPrompt,
    RequestError,
    TPatcher,
    complete,
    load_edit,
    unedited,
)
from editing.edit import Edit
from editing.memory.scope import Scope, untrained_scope
from editing.scoring.asking import routes
from tracer.model.tokens import encode

pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")
OSLO = EditRequest("The capital of {} is", "France", "Oslo")
FRENCH = EditRequest("The mother tongue of {} is", "Angela Merkel", "French")
CODES = GRACE(layer=0, steps=8, radius=0.01)
WIDER = GRACE(layer=0, steps=8, radius=0.02)
BRANCH = CaliNet(layers=(0,), steps=20, rate=0.02, paraphrased=False)
EDITORS = (CODES, TPatcher(memory=40, steps=6, first_check=4, every=2), BRANCH, MemPrompt(), IKE(count=2))


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    return reading_model(tokenizer)


@pytest.fixture
def serac() -> SERAC:
    return SERAC(scope=untrained_scope("hashed-words", rank=4, scale=1.0, seed=0))


def last_logits(model: tracer.LanguageModel) -> Tensor:
    """After each prompt, [prompt, vocab]."""
    prompts = [*PROMPTS, FRENCH.prompt]
    with torch.no_grad():
        rows = [
            model.torch(input_ids=torch.tensor([encode(model.tokenizer, one).ids])).logits[0, -1] for one in prompts
        ]
    return torch.stack(rows)


def read(model: tracer.LanguageModel) -> str:
    """What a question for France's capital is read as."""
    return routes(model, [ROME.prompt])[0].prompt


def test_the_latest_correction_is_read_whatever_was_undone_before_it(model: tracer.LanguageModel, serac: SERAC) -> None:
    first, second, third = (one.apply(model, [fact]) for one, fact in
                            ((MemPrompt(), MADRID), (serac, ROME), (MemPrompt(), OSLO)))  # fmt: skip
    assert "Oslo" in read(model)
    first.undo()
    assert "Oslo" in read(model)
    with unedited(model):
        assert read(model) == ROME.prompt
    assert "Oslo" in read(model)
    third.undo()
    assert "Rome" in read(model) and "Oslo" not in read(model)
    second.undo()


def test_a_memory_goes_back_to_where_its_latest_edit_stands(model: tracer.LanguageModel, serac: SERAC) -> None:
    edits = [one.apply(model, [fact]) for one, fact in ((MemPrompt(), OSLO), (serac, ROME), (MemPrompt(), MADRID))]
    assert "Oslo" in read(model)  # its memory came last
    edits.pop().undo()
    assert "Oslo" not in read(model)
    for edit in edits:
        edit.undo()
    assert read(model) == ROME.prompt and not model.readers


@pytest.mark.parametrize("undone", [0, 1, 2])
def test_a_codebook_beside_a_branch_of_its_layer_stands_where_its_latest_edit_does(
    model: tracer.LanguageModel, undone: int
) -> None:
    bare, edits = last_logits(model), []
    for editor, fact in ((CODES, MADRID), (BRANCH, FRENCH), (CODES, ROME)):
        alone = last_logits(model)
        edits.append(editor.apply(model, [fact]))
        assert not torch.equal(last_logits(model), alone)
    edits.pop(undone).undo()
    left = last_logits(model)
    with unedited(model):
        assert torch.equal(last_logits(model), bare)
    assert torch.equal(last_logits(model), left)
    for edit in edits:
        edit.undo()
    assert torch.equal(last_logits(model), bare) and not any(len(one._forward_hooks) for one in model.torch.modules())


@pytest.mark.parametrize("between", [BRANCH, WIDER])
def test_a_value_is_written_as_it_was_trained_whatever_stands_at_its_layer(
    model: tracer.LanguageModel, between: GRACE | CaliNet
) -> None:
    edits = [CODES.apply(model, [MADRID]), between.apply(model, [FRENCH]), CODES.apply(model, [ROME])]
    (record,) = edits[-1].diagnostics
    assert record["loss"] < record["loss_before"]
    assert record["probability_written"] == pytest.approx(math.exp(-record["loss"]), rel=1e-6)
    for edit in edits:
        edit.undo()


def test_an_edit_that_does_not_fit_says_what_stood_there_and_what_does_now(model, tmp_path) -> None:
    first = MemPrompt().apply(model, [MADRID])
    second = MemPrompt().apply(model, [OSLO])
    second.save(tmp_path / "second.safetensors")
    first.undo()
    second.undo()
    with pytest.raises(BaseModelError, match=r"Then it had 1 edit\(s\) \(Japan -> Madrid\), now it has none"):
        load_edit(tmp_path / "second.safetensors").apply(model)
    with first.apply(model):
        loaded: Edit = load_edit(tmp_path / "second.safetensors").apply(model)
        assert "Oslo" in read(model)
        with pytest.raises(BaseModelError, match=r"had no edits, now it has 2 edit\(s\) \(Japan .*; France -> Oslo\)"):
            Edit((FRENCH,), (), {"method": "none"}, "0" * 64).apply(model)
        loaded.undo()


def test_two_answers_to_one_relation_are_refused_in_one_call_and_the_later_call_holds(model) -> None:
    born = EditRequest("{} was born in", "Ada", "Rome", relation="P19")
    native = EditRequest("{} is a native of", "Ada", "Paris", relation="P19")
    for editor in (MemPrompt(), IKE(route="own")):
        with pytest.raises(RequestError, match="'Ada was born in' is to become 'Rome' and .*'Paris'. Keep one"):
            editor.apply(model, [born, native])
        with editor.apply(model, [born]), editor.apply(model, [native]) as edit:
            assert [record.new for record in model.readers[-1].records] == ["Paris"], edit


@pytest.mark.parametrize("editor", EDITORS, ids=lambda one: type(one).__name__)
def test_what_is_no_seed_or_no_model_is_refused_by_name(model: tracer.LanguageModel, editor) -> None:
    for seed in (-1, 1.5, "a"):
        with pytest.raises(RequestError, match="seed"):
            editor.apply(model, [ROME], seed=seed)
    with pytest.raises(BaseModelError, match="no model of tracer's"):
        editor.apply(model.torch, [ROME])
    assert not model.edits


@pytest.mark.parametrize("editor", EDITORS[:3], ids=lambda one: type(one).__name__)
def test_a_model_with_something_beside_its_weights_is_not_copied(model: tracer.LanguageModel, editor) -> None:
    with editor.apply(model, [ROME]), pytest.raises(EditFailedError, match="Undo it, copy"):
        copy.deepcopy(model.torch)
    copy.deepcopy(model.torch)


def test_a_scope_brings_its_encoder(tokenizer: PreTrainedTokenizerFast) -> None:
    scope = Scope("minilm-like", torch.ones(2), torch.zeros(1, 2))
    assert SERAC(scope=scope).retriever == "minilm-like"
    with pytest.raises(RequestError, match="trained on vectors of 'minilm-like', and retriever is 'bm25'"):
        SERAC(scope=scope, retriever="bm25")


@pytest.mark.parametrize("replace", ["last", "prompt"])
def test_generate_gives_the_same_tokens_with_a_cache_and_without(model: tracer.LanguageModel, replace: str) -> None:
    prompts = [encode(model.tokenizer, prompt).ids for prompt in (ROME.prompt, "It is said that " + MADRID.prompt)]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])

    def said(**options) -> list[list[int]]:
        found = model.torch.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, **options)
        return found[:, width:].tolist()

    bare = said(use_cache=True)
    for begin, row in enumerate(prompts):  # the second one is asked in words of its own
        fact = EditRequest(model.tokenizer.decode(row), "Japan" if begin else "France", "Oslo is the city of")
        with GRACE(layer=0, steps=30, radius=0.01, replace=replace).apply(model, [fact]):
            cached = said(use_cache=True)
            assert cached[begin] != bare[begin] and cached[1 - begin] == bare[1 - begin]
            assert said(use_cache=False) == cached
            assert complete(model, [fact.prompt], new_tokens=6) == [model.tokenizer.decode(cached[begin])]
            assert len(said(use_cache=True, num_beams=2)) == 2
    assert said(use_cache=False) == bare and "generate" not in model.torch.__dict__
    model.torch.generate = mine = functools.partial(model.torch.generate, max_new_tokens=1)
    with MemPrompt().apply(model, [ROME]), CODES.apply(model, [MADRID]):
        assert model.torch.generate is not mine
    assert model.torch.generate is mine


def test_generate_says_that_it_does_not_ask_memories(model: tracer.LanguageModel) -> None:
    ids = torch.tensor([encode(model.tokenizer, ROME.prompt).ids])
    with (
        MemPrompt().apply(model, [ROME]),
        pytest.warns(EditingWarning, match="Write editing.complete"),
    ):
        model.torch.generate(input_ids=ids, max_new_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.torch.generate(input_ids=ids, max_new_tokens=2)
