"""Which units are still to be handed out: those whose worker died come first again, but not for ever."""

from __future__ import annotations

ATTEMPTS = 3
GIVEN_UP = f"each of {ATTEMPTS} workers died on it, most likely out of memory"


class Attempts:
    """Units still to be handed out, and how often each was."""

    def __init__(self, n: int) -> None:
        self.waiting = list(range(n))
        self.given = [0] * n

    def next(self) -> int | None:
        """The next unit to hand out, or None."""
        if not self.waiting:
            return None
        at = self.waiting.pop(0)
        self.given[at] += 1
        return at

    def again(self, at: int) -> bool:
        """Whether this unit, whose worker died, is handed out again; it is not once that happened too often."""
        if self.given[at] >= ATTEMPTS:
            return False
        self.waiting.insert(0, at)
        return True


def free_number(taken: set[int]) -> int:
    """The lowest number that no worker has."""
    return next(number for number in range(len(taken) + 1) if number not in taken)
