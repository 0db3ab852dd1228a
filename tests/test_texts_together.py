"""Texts that are written side by side are those that are written one by one, in every family."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import make_tokenizer
from families import FAMILIES
from transformers.cache_utils import DynamicLayer

import tracer
from editing.scoring.generation import complete
from editing.scoring.growing_cache import ROOM, GrowingLayer
from editing.scoring.last_read import LastRead
from editing.scoring.together import written_until

TEXTS = ["Paris", "The capital of France is", "Rome is in", "The mother tongue of Angela Merkel is"]
MORE = [text + " and so on" for text in TEXTS]


def built(name: str) -> tracer.LanguageModel:
    return tracer.load(FAMILIES[name].build(), tokenizer=make_tokenizer(bos=True), check=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_text_is_written_as_alone(name: str) -> None:
    """Of different lengths, some ended sooner, and gone on with: a second round reads on from the first."""
    model = built(name)
    new, last = [1, 9, 0, 6], [LastRead() for _ in TEXTS]
    for texts in (TEXTS, MORE):
        alone = [complete(model, [text], new_tokens=most)[0].lstrip() for text, most in zip(texts, new, strict=True)]
        assert written_until(model, texts, ["never written"], new_tokens=new, last=last) == alone
        assert any(len(text) > 3 for text in alone)


def test_a_stop_ends_its_own_text_alone(tokenizer_with_bos) -> None:
    model = built("Llama")
    whole = written_until(model, TEXTS, ["never written"], new_tokens=[8] * 4)
    stop = whole[1][2:5]
    assert [stop in text for text in whole] == [False, True, False, False]
    found = written_until(model, TEXTS, [stop], new_tokens=[8] * 4)
    assert found == [whole[0], whole[1][: whole[1].index(stop)], *whole[2:]]


def test_a_full_context_ends_a_text() -> None:
    """Of 24 tokens; what is written last need not be read."""
    model = built("GPT-Neo")
    assert model.context_length == 24
    long = "Rome " * 11
    for texts in ([long], [long, "Paris"]):
        found = written_until(model, texts, ["never written"], new_tokens=[99] * len(texts))
        alone = [complete(model, [text], new_tokens=99)[0].lstrip() for text in texts]
        assert found == alone


def test_a_text_that_is_forked_is_read_on_from_by_both() -> None:
    model, first = built("Gemma 3"), LastRead()
    ids = list(range(5, 25))
    with torch.inference_mode():
        first.read(model, ids)
        other, read = first.fork(), []
        handle = model.torch.register_forward_pre_hook(
            lambda _, __, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        for held, more in ((first, [30, 31]), (other, [40]), (first, [30, 32])):
            found = held.read(model, ids + more)
            torch.testing.assert_close(found, model.torch(input_ids=torch.tensor([ids + more])).logits[0, -1])
        handle.remove()
    assert [count for count in read if count < len(ids)] == [2, 1, 1]


def test_what_grows_is_what_was_put_together() -> None:
    """In place while there is room; after rows or tokens were taken away too."""
    torch.manual_seed(0)
    grown, plain = GrowingLayer(), DynamicLayer()
    buffers = []

    def both(call) -> None:
        call(grown), call(plain)
        assert torch.equal(grown.keys, plain.keys) and torch.equal(grown.values, plain.values)
        buffers.append(grown.keys.data_ptr())

    def add(n_tokens: int, n_rows: int) -> None:
        states = torch.randn(2, n_rows, 2, n_tokens, 3)
        both(lambda layer: layer.update(states[0], states[1]))

    add(5, 3)
    for _ in range(3):
        add(1, 3)
    both(lambda layer: layer.crop(-2))
    add(1, 3)
    assert len(set(buffers)) == 1
    both(lambda layer: layer.batch_select_indices(torch.tensor([0, 2])))
    add(2, 2)
    add(ROOM + 1, 2)
    both(lambda layer: layer.crop(-ROOM))
    add(1, 2)
    assert [one == other for one, other in pairwise(buffers[5:])] == [False, False, False, True, True]


def test_a_copy_of_what_grew_is_not_written_into() -> None:
    """A cropped layer writes over its own room: views that were given out before are of the tokens then."""
    grown = GrowingLayer()
    keys, _ = grown.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    kept = keys.clone()
    grown.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert torch.equal(keys, kept)
