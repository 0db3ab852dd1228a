"""How the sweep lays out its work: rows that climb the layers, and the tokens packed in each row.

A *row* stands for one column of a map. A *packing* puts the tokens of several restored tokens into
one sequence of pairs (i, j): i the restored token, j >= i the token computed. A mask keeps the
groups apart, so that (i, j) sees the corrupted run's tokens before i and its own (i, j' <= j). A group
may restore several tokens at once; then i is the first of them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracer.site import Tokens, together, window_layers


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
    held: Container[int] = range(0)
    parent: Row | None = None


def state_rows(n_layers: int) -> list[Row]:
    """A row for each restored state; none for the last block, where nothing is left to run."""
    return [Row((layer,), layer + 1) for layer in range(n_layers - 1)]


def severed_rows(n_layers: int, *, from_below: bool, layers: Container[int] | None = None) -> list[Row]:
    """As `state_rows`, a sub-layer held in some layers.

    Args:
        n_layers: of the model.
        layers: in which it is held; default: in every layer.
        from_below: the held values are not the corrupted run's own, so the rows differ from it below the
            restored layer too: they leave a trunk that starts at the embeddings.
    """
    held = range(n_layers) if layers is None else layers
    trunk = Row((n_layers - 1,), 0, held) if from_below else None
    rows = [Row((layer,), layer + 1, held, trunk) for layer in range(n_layers - 1)]
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
    """The pairs of one packed sequence, all those of restored tokens first.

    Attributes:
        group, computed: of each pair, the number of its group and its token j.
        restored: the first token that its group restores; what comes before it is not packed.
        groups: the tokens that each group restores.
        n_restored: how many pairs are of restored tokens.
        held: the pairs whose sub-layer output may be held: by default those of restored tokens.
        last: the pairs that the answer is read from, by index: of each group, for each position of the answer.
        held_last: those of `last` that may be held.
        key_positions: the token of each key that `mask` speaks of, [prefix + pair].
        clean_token: this group's own pair is not packed: the token is clean in every layer, its keys
            and values stand behind the prefix and only its group sees them.
    """

    group: Tensor
    computed: Tensor
    restored: Tensor
    groups: tuple[tuple[int, ...], ...]
    n_restored: int
    held: slice
    last: Tensor
    held_last: slice
    key_positions: Tensor
    clean_token: int | None = None

    @classmethod
    def of(
        cls,
        groups: Sequence[Tokens],
        n_tokens: int,
        clean_token: int | None = None,
        *,
        held: Sequence[int] | None = None,
        answer_length: int = 1,
        device: torch.device | str = "cpu",
    ) -> Packing:
        """Packs groups of restored tokens, each up to the last of `n_tokens` tokens.

        Args:
            groups: in the order of `in_order`.
            n_tokens: of the prompt, with all but the last of the answer's tokens.
            clean_token: see the attribute; only if it is a group of its own.
            held: the tokens whose sub-layer output may be held; default: those that each group restores.
            answer_length: how many of the last positions the answer is read from.
            device: of the tensors.
        """
        own = [together(group) for group in groups]
        clean_token = clean_token if (clean_token,) in own else None

        def is_held(pair: tuple[int, int]) -> bool:
            return pair[1] in (own[pair[0]] if held is None else held)

        def layout(pair: tuple[int, int]) -> tuple[bool, bool]:  # held pairs stand together, across the border
            is_restored = pair[1] in own[pair[0]]
            return not is_restored, is_held(pair) == is_restored

        pairs = [(number, j) for number, tokens in enumerate(own) for j in range(tokens[0], n_tokens)]
        if clean_token is not None:
            pairs.remove((own.index((clean_token,)), clean_token))
        pairs.sort(key=layout)
        at = {pair: index for index, pair in enumerate(pairs)}
        read = [(number, j) for j in range(n_tokens - answer_length, n_tokens) for number in range(len(own))]
        group, computed = torch.tensor(pairs, device=device).T
        prefix = [*range(n_tokens - 1), *([] if clean_token is None else [clean_token])]
        return cls(
            group=group,
            computed=computed,
            restored=torch.tensor([own[number][0] for number, _ in pairs], device=device),
            groups=tuple(own),
            n_restored=sum(j in own[number] for number, j in pairs),
            held=_stretch([is_held(pair) for pair in pairs]),
            last=torch.tensor([at[pair] for pair in read], device=device),
            held_last=_stretch([is_held(pair) for pair in read]),
            key_positions=torch.cat((computed.new_tensor(prefix), computed)),
            clean_token=clean_token,
        )

    def __len__(self) -> int:
        return len(self.computed)

    def alone(self) -> Packing:
        """The pairs of restored tokens, each a group of its own that sees the base run before it."""
        n = self.n_restored
        computed, none = self.computed[:n], slice(0, 0)
        n_prefix = len(self.key_positions) - len(self) - (self.clean_token is not None)
        keys = torch.cat((self.key_positions[:n_prefix], computed))
        each = torch.arange(n, device=computed.device)
        return Packing(each, computed, computed, (), n, slice(0, n), self.last[:0], none, keys)

    def mask(self, visible: Tensor) -> Tensor:
        """Who sees whom: bool [pair, prefix + pair], the prefix being tokens 0 .. T-2 and then `clean_token`.

        Args:
            visible: which token sees which in this layer of the model, bool [token, token].
        """
        seen = visible[self.computed]  # [pair, token]
        tokens = torch.arange(seen.shape[1], device=seen.device)
        prefix = seen[:, :-1] & (tokens[:-1] < self.restored[:, None])
        same_group = self.group[:, None] == self.group
        packed = same_group & seen[:, self.computed] & (self.computed <= self.computed[:, None])
        if self.clean_token is None:
            return torch.cat((prefix, packed), dim=1)
        own = (self.group == self.groups.index((self.clean_token,))) & seen[:, self.clean_token]
        return torch.cat((prefix, own[:, None], packed), dim=1)


def in_order(groups: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Each group once, in the order to pack them in: those that restore the last token come last."""
    return sorted(set(groups), key=lambda group: (max(group, default=-1), group))


def bundles(groups: Sequence[Tokens], n_tokens: int, most: int) -> list[list[Tokens]]:
    """Cuts `groups` into runs of at most `most` pairs each (or one group, if it alone has more)."""
    cut: list[list[Tokens]] = []
    size = most
    for group in groups:
        pairs = n_tokens - together(group)[0]
        if not cut or size + pairs > most:
            cut.append([])
            size = 0
        cut[-1].append(group)
        size += pairs
    return cut


def _stretch(chosen: Sequence[bool]) -> slice:
    """Where the chosen ones stand, which must be beside each other."""
    if not any(chosen):
        return slice(0, 0)
    begin, n = chosen.index(True), sum(chosen)
    assert all(chosen[begin : begin + n])
    return slice(begin, begin + n)
