"""A cache of keys and values with room behind them, so that what is added seldom copies what is there.

transformers' own concatenates: every token that is written copies all before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64  # tokens

States = tuple[Tensor, Tensor]  # keys and values, [row, head, token, d_head]


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer: the beginning of something longer."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._long: States | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> States:
        """Adds tokens; the keys and values of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if self._long is None or end > self._long[0].shape[-2]:
            self._long = _longer(self.keys, key_states, begin, end), _longer(self.values, value_states, begin, end)
        keys, values = self._long
        keys[..., begin:end, :], values[..., begin:end, :] = key_states, value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def keep(self, rows: Sequence[int], begin: int) -> None:
        """Drops all other rows, and the tokens before `begin`."""
        self._long = None
        self.keys, self.values = self.keys[rows][..., begin:, :], self.values[rows][..., begin:, :]

    def batch_select_indices(self, indices: Tensor) -> None:
        """As transformers calls it."""
        self.keep(indices.tolist(), 0)


class GrowingCache(Cache):
    """Such layers, as many as the model has."""

    layers: list[GrowingLayer]

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)

    @classmethod
    def of(cls, states: Iterable[States]) -> GrowingCache:
        """A copy of what each layer holds."""
        cache = cls()
        for number, (keys, values) in enumerate(states):
            cache.update(keys, values, number)
        return cache

    @property
    def states(self) -> list[States]:
        """Keys and values of each layer, [row, head, token, d_head] each."""
        return [(layer.keys, layer.values) for layer in self.layers]

    def keep(self, rows: Sequence[int], begin: int) -> None:
        """Drops all other rows, and the tokens before `begin`."""
        for layer in self.layers:
            layer.keep(rows, begin)


def _longer(held: Tensor, fresh: Tensor, begin: int, end: int) -> Tensor:
    """The first `begin` tokens of `held` with room for `end` and some."""
    long = fresh.new_empty(*fresh.shape[:-2], end + ROOM, fresh.shape[-1])
    if begin:
        long[..., :begin, :] = held
    return long
