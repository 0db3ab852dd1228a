"""Which records of a file are read: the first ones, or as many evenly over it."""

from __future__ import annotations


def chosen_numbers(total: int, n: int | None, *, evenly: bool) -> range:
    """The numbers of `n` of `total` records; None: of all."""
    return range(0, total, _step(total, n, evenly))[:n]


def slice_in_words(total: int, n: int | None, read: int, *, evenly: bool) -> str:
    """Which of `total` records the `read` ones are, e.g. "every 3rd 100 of 300"."""
    step = _step(total, n, evenly)
    return f"{f'every {_ordinal(step)}' if step > 1 else 'first'} {read} of {total}"


def _step(total: int, n: int | None, evenly: bool) -> int:
    return max(1, total // n) if n and evenly else 1


def _ordinal(number: int) -> str:
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
