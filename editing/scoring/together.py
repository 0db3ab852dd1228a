"""Greedy text after several texts at once, each as it would be written alone (to rounding), up to a stop.

read            each text by itself, on from where it parts from what was read before it
write           the next token of all in one pass: keys and values stand side by side, those of shorter texts
                padded on the left, where nothing looks; positions count from each text's own first token
leave           a text that is done, so that the others are not held up
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
        prompts: different ones may be of different lengths.
        stops: what ends a continuation, and is not part of it; so does an end-of-text token.
        new_tokens: of each continuation at most, or as many as the context holds.
        last: what the unchanged model read before each prompt, and from then on that prompt; one for each, or none.
    """
    kept = last or [LastRead() for _ in prompts]
    texts = [_Text(model, prompt, most) for prompt, most in zip(prompts, new_tokens, strict=True)]
    for text, read in zip(texts, kept, strict=True):
        text.read(read)
    _write([text for text in texts if not text.ended(stops)], model, stops)
    return [text.up_to(stops) for text in texts]


class _Text:
    """A prompt and what is written after it."""

    def __init__(self, model: LanguageModel, prompt: str, most: int) -> None:
        self.model, self.ids = model, list(encode(model.tokenizer, prompt).ids)
        self._given, held = len(self.ids), model.context_length
        model.check_length(self._given)
        self._most = most if held is None else min(most, held + 1 - self._given)

    def read(self, last: LastRead) -> None:
        """Reads the prompt, and writes the first token."""
        self.last, logits = last, last.read(self.model, self.ids)
        if self._most > 0:
            self.ids.append(int(logits.argmax()))

    @property
    def written(self) -> str:
        """So far."""
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


def _write(texts: list[_Text], model: LanguageModel, stops: Sequence[str]) -> None:
    """Writes all of these to their ends; the texts' own caches take what was read."""
    if not texts:
        return
    cache, seen = _side_by_side([text.last.cache for text in texts], model.device)
    counted = "position_ids" in inspect.signature(model.torch.forward).parameters
    while texts:
        seen = torch.cat((seen, seen.new_ones(len(texts), 1)), dim=1)
        ids = torch.tensor([text.ids[-1:] for text in texts], device=model.device)
        place = {"position_ids": seen.sum(1, keepdim=True) - 1} if counted else {}
        found = model.torch(input_ids=ids, attention_mask=seen, past_key_values=cache, use_cache=True, **place)
        model.check_finite(found.logits)
        for text, token in zip(texts, found.logits[:, -1].argmax(-1).tolist(), strict=True):
            text.ids.append(token)
        going = [row for row, text in enumerate(texts) if not text.ended(stops)]
        for row in sorted(set(range(len(texts))) - set(going)):
            texts[row].last.take(cache, row, texts[row].ids[:-1])
        if len(going) < len(texts):
            texts, seen = [texts[row] for row in going], _left(cache, seen, going)


def _left(cache: GrowingCache, seen: Tensor, rows: list[int]) -> Tensor:
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
    layers = zip(*(cache.states for cache in caches), strict=True)
    both = GrowingCache.of(
        (_padded([keys for keys, _ in rows], width), _padded([values for _, values in rows], width)) for rows in layers
    )
    seen = [[0] * (width - length) + [1] * length for length in lengths]
    return both, torch.tensor(seen, device=device)


def _padded(rows: Sequence[Tensor], width: int) -> Tensor:
    return torch.cat([pad(row, (0, 0, width - row.shape[-2], 0)) for row in rows])
