"""Texts that are written side by side are those that are written one by one, in every family."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import make_tokenizer, tiny_llama
from families import FAMILIES
from transformers.cache_utils import DynamicLayer

import tracer
from editing import GRACE, EditRequest
from editing.scoring.generation import complete
from editing.scoring.growing_cache import ROOM, GrowingLayer
from editing.scoring.last_read import LastRead
from editing.scoring.texts_together import written_until
from tracer.model.tokens import encode

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


def test_the_first_of_two_stops_counts() -> None:
    model = built("Llama")
    (whole,) = written_until(model, ["Paris"], ["never written"], new_tokens=[8])
    assert written_until(model, ["Paris"], [whole[3:5], whole[2:5]], new_tokens=[8]) == [whole[:2]]


def test_what_is_too_long_or_not_finite_is_refused() -> None:
    model = built("GPT-Neo")
    with pytest.raises(tracer.FactError, match="takes 24"):
        written_until(model, ["Rome " * 30], [], new_tokens=[1])
    for first in (True, False):  # the prompt's own pass, and those after it
        model, passes = built("Llama"), []

        def spoilt(_module, _given, out, first=first, passes=passes):
            passes.append(out)
            if first or len(passes) > 1:
                out.logits[...] = float("nan")

        model.torch.register_forward_hook(spoilt)
        with pytest.raises(tracer.NumericsError):
            written_until(model, ["Paris"], [], new_tokens=[4])
        assert len(passes) == (1 if first else 2)


def test_a_stop_ends_the_work_too() -> None:
    """No pass more than the longest text needs, and rows leave as they end."""
    model, rows = built("Llama"), []
    model.torch.register_forward_pre_hook(
        lambda _, __, given: rows.append(given["input_ids"].shape[0]), with_kwargs=True
    )
    written_until(model, TEXTS, ["never written"], new_tokens=[1, 2, 4, 3])
    assert rows == [1, 1, 1, 1, 3, 2, 1]
    rows.clear()
    written_until(model, TEXTS, [""], new_tokens=[9] * 4)
    assert rows == [1, 1, 1, 1]


@pytest.mark.filterwarnings("ignore:1 of 1 answers")
def test_texts_that_a_codebook_is_asked_for_are_read_whole(tokenizer_with_bos) -> None:
    """It answers at the end of a prompt, which what was read before does not show."""
    torch.manual_seed(0)
    model = tracer.load(tiny_llama().double(), tokenizer=tokenizer_with_bos, check=False)
    request = EditRequest("The capital of {} is", "France", " Rome")
    unedited = complete(model, TEXTS, new_tokens=5)
    with GRACE(layer=2, radius=50.0, steps=5).apply(model, [request]):
        assert all(now != before for now, before in zip(complete(model, TEXTS, new_tokens=5), unedited, strict=True))
        beginning = LastRead()
        beginning.read(model, encode(model.tokenizer, "The capital of").ids)
        last = [beginning.fork() for _ in TEXTS]
        for texts in (TEXTS, TEXTS, MORE):
            alone = [complete(model, [text], new_tokens=5)[0].lstrip() for text in texts]
            assert written_until(model, texts, ["never written"], new_tokens=[5] * 4, last=last) == alone


def test_reading_that_was_interrupted_is_begun_anew() -> None:
    """Also where as many tokens were read again as had been dropped."""
    model, held = built("Llama"), LastRead()
    ids, other = list(range(5, 25)), [*range(5, 15), *range(40, 50)]
    held.read(model, ids)
    for layer in range(model.n_layers):

        def stop(*_):
            raise KeyboardInterrupt

        handle = model.anatomy.blocks[layer].register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            held.read(model, other)
        handle.remove()
        with torch.inference_mode():
            whole = model.torch(input_ids=torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(held.read(model, ids), whole)


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
    kept = first.fork()
    first.read(model, [*ids[:8], 41, 42])  # over what the fork was taken of
    with torch.inference_mode():
        found = model.torch(input_ids=torch.tensor([[*ids, 30, 33]])).logits[0, -1]
    torch.testing.assert_close(kept.read(model, [*ids, 30, 33]), found)


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
