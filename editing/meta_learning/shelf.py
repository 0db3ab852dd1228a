"""Texts that come again are read once: from the second round over its records on, a training knows their states.

Which texts are read together is settled by the first round alone. So a training that was stopped and goes on
finds the same numbers, bit for bit, as one that was not: what it lacks it reads as it was read first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from editing.meta_learning.states import Ids

MOST_BYTES = 2**30  # kept in all; what does not fit is read in every round

Drawn = Sequence[tuple[int, int]]  # records of one pass, and how often each was seen before
States = dict[Ids, Tensor]
Read = Callable[[Iterable[Ids]], States]


class Shelf:
    """The states of first rounds.

    Args:
        read: gives the states of rows of ids, [token, d_model] each.
        rows_of: the rows of ids that a pass needs.
        passes: those of the first round, each of its records in one of them.
        bytes_a_token: of a state.
    """

    def __init__(self, read: Read, rows_of: Callable[[Drawn], list[Ids]], passes: Sequence[Drawn], bytes_a_token: int):
        self._read, self._rows_of = read, rows_of
        size = bytes_a_token * sum(map(len, rows_of(passes[0]))) if passes else 1
        self._passes = passes[: MOST_BYTES // size]
        self._pass_of = {number: at for at, drawn in enumerate(self._passes) for number, _ in drawn}
        self._kept: dict[int, States] = {}

    def reading(self, drawn: Drawn) -> Read:
        """Reads the rows of a pass, those that a first round has read from the shelf."""

        def read(rows: Iterable[Ids]) -> States:
            known: States = {}
            for at in dict.fromkeys(self._pass_of[number] for number, _ in drawn if number in self._pass_of):
                known |= self._first(at)
            return known | self._read(ids for ids in rows if ids not in known)

        return read

    def _first(self, at: int) -> States:
        if at not in self._kept:
            self._kept[at] = self._read(self._rows_of(self._passes[at]))
        return self._kept[at]
