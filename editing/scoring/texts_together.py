"""Greedy text after several texts at once, up to a stop: what is written after each by itself.

read            each text by itself, on from where it parts from what was read before it
write           the next token of all in one pass: keys and values stand side by side, those of shorter texts
                padded on the left, where nothing looks; positions count from each text's own first token
leave           a text that is done, so that the others are not held up

Equal to rounding: in 16 bits another token may win beside other texts, and so it may where positions are scaled by
the longest text of a pass (LongRoPE). `generation.continued` is for texts of one length.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from editing.scoring.generation import text_of
from editing.scoring.growing_cache import GrowingCache
from editing.scoring.last_read import LastRead
from tracer.model import LanguageModel
from tracer.model.tokens import encode


@torch.inference_mode()
def written_until(
    model: LanguageModel,
    prompts: Sequence[str],
    stops: Sequence[str],
    *,
    new_tokens: Sequence[int],
    last: Sequence[LastRead] = (),
) -> list[str]:
    """The greedy continuation of each prompt up to the first of `stops`, matched in the text whatever its tokens.

    White space in front is dropped before that. The model itself reads the prompts; no reader of prompts is asked.

    Args:
        model: a decoder.
        prompts: of any lengths.
        stops: what ends a continuation, and is not part of it; so does an end-of-text token.
        new_tokens: of each continuation at most, or as many as the context holds.
        last: what was read before each prompt, and from then on that prompt: a different one for each, or none.
    """
    before = last or [LastRead() for _ in prompts]
    assert len(set(map(id, before))) == len(prompts), "a LastRead for each prompt"
    texts = [_Text(model, *one) for one in zip(prompts, new_tokens, before, strict=True)]
    for text in texts:
        text.begin()
    _write(model, [text for text in texts if not text.ended(stops)], stops)
    return [text.up_to(stops) for text in texts]


class _Text:
    """A prompt and what is written after it."""

    def __init__(self, model: LanguageModel, prompt: str, most: int, last: LastRead) -> None:
        self.model, self.last, self.ids = model, last, list(encode(model.tokenizer, prompt).ids)
        self._given, context = len(self.ids), model.context_length
        model.check_length(self._given)
        self._most = most if context is None else min(most, context + 1 - self._given)

    def begin(self) -> None:
        """Reads the prompt, and writes the first token."""
        logits = self.last.read(self.model, self.ids)
        if self._most > 0:
            self.ids.append(int(logits.argmax()))

    @property
    def written(self) -> str:
        """The text written so far, without the prompt."""
        return text_of(self.model, self.ids[self._given :]).lstrip()

    def ended(self, stops: Sequence[str]) -> bool:
        """Whether nothing more is to be written."""
        assert self.model.tokenizer is not None
        full = len(self.ids) - self._given >= self._most
        return full or self.ids[-1] == self.model.tokenizer.eos_token_id or any(stop in self.written for stop in stops)

    def up_to(self, stops: Sequence[str]) -> str:
        """What was written, without a stop and what follows it."""
        text = self.written
        return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def _write(model: LanguageModel, texts: list[_Text], stops: Sequence[str]) -> None:
    """Writes all of these to their ends."""
    if not texts:
        return
    cache, seen = _side_by_side([text.last.give() for text in texts], model.device)
    by_position = "position_ids" in inspect.signature(type(model.torch).forward).parameters
    while texts:
        seen = torch.cat((seen, seen.new_ones(len(texts), 1)), dim=1)
        ids = torch.tensor([text.ids[-1:] for text in texts], device=model.device)
        place = {"position_ids": seen.sum(1, keepdim=True) - 1} if by_position else {}
        found = model.torch(input_ids=ids, attention_mask=seen, past_key_values=cache, use_cache=True, **place)
        model.check_finite(found.logits)
        for text, token in zip(texts, found.logits[:, -1].argmax(-1).tolist(), strict=True):
            text.ids.append(token)
        ended = [text.ended(stops) for text in texts]
        for row, text in enumerate(texts):
            if ended[row]:
                text.last.take(cache, row, text.ids[:-1])
        if any(ended):
            going = [row for row in range(len(texts)) if not ended[row]]
            texts, seen = [texts[row] for row in going], _kept(cache, seen, going)


def _kept(cache: GrowingCache, seen: Tensor, rows: list[int]) -> Tensor:
    """Keeps these rows of a cache, without what is padding of all of them; which tokens are to be seen."""
    if not rows:
        return seen[:0]
    begin = int(seen[rows].any(0).int().argmax())
    cache.keep(rows, begin)
    return seen[rows, begin:]


def _side_by_side(caches: Sequence[GrowingCache], device: torch.device) -> tuple[GrowingCache, Tensor]:
    """One cache with a row for each, padded on the left, and which of its tokens are to be seen, [row, token]."""
    lengths = [cache.get_seq_length() for cache in caches]
    width = max(lengths)
    seen = torch.tensor([[0] * (width - length) + [1] * length for length in lengths], device=device)
    if len(caches) == 1:
        return caches[0], seen
    layers = zip(*(cache.states for cache in caches), strict=True)
    whole = GrowingCache.of(
        (_padded([keys for keys, _ in rows], width), _padded([values for _, values in rows], width)) for rows in layers
    )
    return whole, seen


def _padded(rows: Sequence[Tensor], width: int) -> Tensor:
    return torch.cat([pad(row, (0, 0, width - row.shape[-2], 0)) for row in rows])
