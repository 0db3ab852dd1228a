"""Which records of a file are read: the first ones, or as many evenly over it."""

from __future__ import annotations


def chosen_numbers(total: int, n: int | None, *, evenly: bool) -> range:
    """The numbers of `n` of `total` records; None: of all."""
    return range(0, total, _step(total, n, evenly))[:n]


def slice_in_words(total: int, n: int | None, read: int, *, evenly: bool) -> str:
    """Which of `total` records the `read` ones are, e.g. "every 3th 100 of 300"."""
    step = _step(total, n, evenly)
    return f"{f'every {step}th' if step > 1 else 'first'} {read} of {total}"


def _step(total: int, n: int | None, evenly: bool) -> int:
    return max(1, total // n) if n and evenly else 1
