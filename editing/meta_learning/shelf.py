"""What comes again is read once: from the second round over its records on, a training knows what it needs of them.

What is read together is settled by the first round alone. So a training that was stopped and goes on finds the
same numbers, bit for bit, as one that was not: what it lacks it reads as it was read first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Drawn = Sequence[tuple[int, int]]  # records of one pass, and how often each was seen before


class Shelf(Generic[Key, Value]):
    """What was read in the first round.

    Args:
        read: gives what is known of each key: of a text's ids what enters a block, of a prompt its answer.
        needed: the keys of a pass.
        passes: those of the first round that there is room for, each record in one of them at most.
    """

    def __init__(
        self,
        read: Callable[[Iterable[Key]], dict[Key, Value]],
        needed: Callable[[Drawn], Iterable[Key]],
        passes: Sequence[Drawn],
    ) -> None:
        self._read, self._needed, self._passes = read, needed, passes
        self._pass_of = {number: at for at, drawn in enumerate(passes) for number, _ in drawn}
        self._kept: dict[int, dict[Key, Value]] = {}

    def reading(self, drawn: Drawn) -> Callable[[Iterable[Key]], dict[Key, Value]]:
        """Reads keys for a pass, those that a first round has read from the shelf."""

        def read(keys: Iterable[Key]) -> dict[Key, Value]:
            known: dict[Key, Value] = {}
            for at in dict.fromkeys(self._pass_of[number] for number, _ in drawn if number in self._pass_of):
                known |= self._first(at)
            missing = [key for key in dict.fromkeys(keys) if key not in known]
            return known | self._read(missing) if missing else known

        return read

    def _first(self, at: int) -> dict[Key, Value]:
        if at not in self._kept:
            self._kept[at] = self._read(self._needed(self._passes[at]))
        return self._kept[at]
