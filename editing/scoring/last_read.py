"""Text that a model read last, so that one which begins alike is read on from where they part.

`prefix` is for many inputs at once that are known beforehand; here each is known once the last one is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from transformers import DynamicCache


class LastRead:
    """Keys and values of the text that a model read last, so that one which begins alike is read on from there."""

    def __init__(self) -> None:
        self.cache = DynamicCache()
        self._read: list[int] = []

    def unread(self, ids: Sequence[int]) -> int:
        """Where `ids` are to be read on from: at most their last one, whose logits are wanted."""
        if self.cache.get_seq_length() != len(self._read):  # it was interrupted
            self.cache, self._read = DynamicCache(), []
        pairs = zip(self._read, ids[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if shared < len(self._read):
            self.cache.crop(shared - len(self._read))
        self._read = list(ids[:shared])
        return shared

    def keep(self, ids: Sequence[int]) -> None:
        """`ids` have been read, but for what was written last."""
        self._read = list(ids[: self.cache.get_seq_length()])
