"""Text that a model read last, so that one which begins alike is read on from where they part.

`prefix` is for many inputs at once that are known beforehand; here each is known once the last one is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from editing.scoring.growing_cache import GrowingCache
from tracer.model import LanguageModel


class LastRead:
    """Keys and values of the text that a model read last.

    Attributes:
        cache: of it.
    """

    def __init__(self) -> None:
        self.cache = GrowingCache()
        self._ids: list[int] = []

    def read(self, model: LanguageModel, ids: Sequence[int]) -> Tensor:
        """Reads what is new of `ids`, at least the last one; the logits after them, [vocab]."""
        fresh = torch.tensor([list(ids[self._shared(ids) :])], device=model.device)
        logits = model.torch(input_ids=fresh, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
        model.check_finite(logits)
        self._ids = list(ids)
        return logits[0, -1]

    def fork(self) -> LastRead:
        """The same, to be read on from by another text."""
        other = LastRead()
        other.cache, other._ids = GrowingCache.of(self.cache.states), list(self._ids)
        return other

    def take(self, cache: GrowingCache, row: int, ids: Sequence[int]) -> None:
        """`ids` are what was read, as a row of a cache that is padded on the left."""
        own = slice(row, row + 1), slice(None), slice(-len(ids), None)
        self.cache, self._ids = GrowingCache.of((keys[own], values[own]) for keys, values in cache.states), list(ids)

    def _shared(self, ids: Sequence[int]) -> int:
        """How many of `ids`, but for the last, were read already; nothing else is held afterwards."""
        if self.cache.get_seq_length() != len(self._ids):  # it was interrupted
            self.cache, self._ids = GrowingCache(), []
        pairs = zip(self._ids, ids[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if shared < len(self._ids):
            self.cache.crop(shared - len(self._ids))
        return shared
