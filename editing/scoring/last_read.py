"""Text that a model read last, so that one which begins alike is read on from where they part.

`prefix` is for many inputs at once that are known beforehand; here each is known once the last one is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from editing.scoring.asking import goes_by_prompt_ends
from editing.scoring.growing_cache import GrowingCache
from tracer.model import LanguageModel


class LastRead:
    """Keys and values of the text that a model read last.

    Where edits go by the end of a prompt (a codebook is asked there), a text is read whole each time.
    """

    def __init__(self) -> None:
        self._cache = GrowingCache()
        self._ids: list[int] = []

    @torch.inference_mode()
    def read(self, model: LanguageModel, ids: Sequence[int]) -> Tensor:
        """Reads what is new of `ids`, at least the last one; the logits after them, [vocab].

        Raises:
            NumericsError: logits that are not finite.
        """
        begin = self._begin_after(0 if goes_by_prompt_ends(model) else self._shared(ids))
        fresh = torch.tensor([list(ids[begin:])], device=model.device)
        logits = model.torch(input_ids=fresh, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits
        model.check_finite(logits)
        self._ids = list(ids)
        return logits[0, -1]

    def fork(self) -> LastRead:
        """The same, to be read on from by another text."""
        other = LastRead()
        if self._is_whole:
            other._cache, other._ids = GrowingCache.of(self._cache.states), list(self._ids)
        return other

    def give(self) -> GrowingCache:
        """What it holds, which it no longer does."""
        cache, self._cache, self._ids = self._cache, GrowingCache(), []
        return cache

    def take(self, cache: GrowingCache, row: int, ids: Sequence[int]) -> None:
        """`ids` are what was read, as a row of a cache that is padded on the left."""
        own = slice(row, row + 1), slice(None), slice(-len(ids), None)
        self._cache, self._ids = GrowingCache.of((keys[own], values[own]) for keys, values in cache.states), list(ids)

    def _shared(self, ids: Sequence[int]) -> int:
        """How many of `ids`, but for the last, were read already."""
        pairs = zip(self._ids, ids[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) if self._is_whole else 0

    def _begin_after(self, n_tokens: int) -> int:
        """Holds the first `n_tokens` of what was read and nothing else."""
        if n_tokens == 0:
            self._cache, self._ids = GrowingCache(), []
        elif n_tokens < len(self._ids):
            self._cache.crop(n_tokens - len(self._ids))
            self._ids = self._ids[:n_tokens]  # before anything is read: should that be interrupted, it shows
        return n_tokens

    @property
    def _is_whole(self) -> bool:
        """Whether nothing was interrupted."""
        return self._cache.get_seq_length() == len(self._ids)
