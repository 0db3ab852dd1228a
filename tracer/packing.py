"""How the sweep lays out its work: rows that climb the layers, and the tokens packed in each row.

A *row* stands for one column of a map. A *packing* puts the tokens of several restored tokens into
one sequence of pairs (i, j): i the restored token, j >= i the token computed. A mask keeps the
groups apart, so that (i, j) sees the corrupted run's tokens before i and its own (i, j' <= j).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracer.site import window_layers


@dataclass(frozen=True)
class Row:
    """One column of a map on its way up the layers.

    Attributes:
        columns: the layers of the map it answers for.
        start: the first block it runs; it joins below this block.
        held: the layers in which its restored token's sub-layer output is overwritten.
        parent: the row whose states it starts from; None: the corrupted run.
    """

    columns: tuple[int, ...]
    start: int
    held: range = range(0)
    parent: Row | None = None


def state_rows(n_layers: int) -> list[Row]:
    """A row for each restored state; none for the last block, where nothing is left to run."""
    return [Row((layer,), layer + 1) for layer in range(n_layers - 1)]


def severed_rows(n_layers: int, *, from_below: bool) -> list[Row]:
    """As `state_rows`, a sub-layer of the restored token held in every layer.

    Args:
        n_layers: of the model.
        from_below: the held values are not the corrupted run's own, so the rows differ from it below the
            restored layer too: they leave a trunk that starts at the embeddings.
    """
    every = range(n_layers)
    trunk = Row((n_layers - 1,), 0, every) if from_below else None
    rows = [Row((layer,), layer + 1, every, trunk) for layer in range(n_layers - 1)]
    return [trunk, *rows] if trunk else rows


def window_rows(window: int, n_layers: int) -> list[Row]:
    """A row for each window of layers, equal windows once, in the order in which they join.

    A window's first block is run for the restored tokens alone when the row joins, so `start` is
    the block after it. Windows clipped at layer 0 branch off the longest of them where they end.
    """
    columns: dict[range, list[int]] = {}
    for layer in range(n_layers):
        columns.setdefault(window_layers(layer, window, n_layers), []).append(layer)
    clipped = [layers for layers in columns if layers.start == 0]
    longest = max(clipped, key=len)
    trunk = Row(tuple(columns[longest]), 1, longest)
    branches = [Row(tuple(columns[layers]), layers.stop, parent=trunk) for layers in clipped if layers != longest]
    free = [Row(tuple(columns[layers]), layers.start + 1, layers) for layers in columns if layers.start > 0]
    return sorted([trunk, *branches, *free], key=lambda row: (row.start, row is not trunk))


@dataclass(frozen=True)
class Packing:
    """The pairs of one packed sequence, all (i, i) first.

    Attributes:
        restored, computed: i and j of each pair.
        groups: the restored tokens.
        n_diagonal: how many pairs are (i, i).
        last: the pair (i, T-1) of each group, by index.
        key_positions: the token of each key that `mask` speaks of, [prefix + pair].
        clean_token: this group's own pair is not packed: the token is clean in every layer, its keys
            and values stand behind the prefix and only its group sees them.
    """

    restored: Tensor
    computed: Tensor
    groups: tuple[int, ...]
    n_diagonal: int
    last: Tensor
    key_positions: Tensor
    clean_token: int | None = None

    @classmethod
    def of(
        cls,
        groups: Sequence[int],
        n_tokens: int,
        clean_token: int | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> Packing:
        """Packs the groups of the restored tokens `groups`, up to the last of `n_tokens` tokens."""
        clean_token = clean_token if clean_token in groups else None
        diagonal = [(i, i) for i in groups if i != clean_token]
        pairs = diagonal + [(i, j) for i in groups for j in range(i + 1, n_tokens)]
        restored, computed = torch.tensor(pairs, device=device).T
        last = torch.tensor([pairs.index((i, n_tokens - 1)) for i in groups], device=device)
        prefix = [*range(n_tokens - 1), *([] if clean_token is None else [clean_token])]
        key_positions = torch.cat((computed.new_tensor(prefix), computed))
        return cls(restored, computed, tuple(groups), len(diagonal), last, key_positions, clean_token)

    def __len__(self) -> int:
        return len(self.computed)

    def diagonal(self) -> Packing:
        """The pairs (i, i) alone."""
        n = self.n_diagonal
        n_prefix = len(self.key_positions) - len(self) - (self.clean_token is not None)
        keys = torch.cat((self.key_positions[:n_prefix], self.computed[:n]))
        return Packing(self.restored[:n], self.computed[:n], self.groups, n, self.last[:0], keys)

    def mask(self, visible: Tensor) -> Tensor:
        """Who sees whom: bool [pair, prefix + pair], the prefix being tokens 0 .. T-2 and then `clean_token`.

        Args:
            visible: which token sees which in this layer of the model, bool [token, token].
        """
        seen = visible[self.computed]  # [pair, token]
        tokens = torch.arange(seen.shape[1], device=seen.device)
        prefix = seen[:, :-1] & (tokens[:-1] < self.restored[:, None])
        same_group = self.restored[:, None] == self.restored
        packed = same_group & seen[:, self.computed] & (self.computed <= self.computed[:, None])
        if self.clean_token is None:
            return torch.cat((prefix, packed), dim=1)
        own = (self.restored == self.clean_token) & seen[:, self.clean_token]
        return torch.cat((prefix, own[:, None], packed), dim=1)


def bundles(groups: Sequence[int], n_tokens: int, most: int) -> list[list[int]]:
    """Cuts `groups` into runs of at most `most` pairs each (or one group, if it alone has more)."""
    cut: list[list[int]] = []
    size = most
    for i in groups:
        pairs = n_tokens - i
        if not cut or size + pairs > most:
            cut.append([])
            size = 0
        cut[-1].append(i)
        size += pairs
    return cut
