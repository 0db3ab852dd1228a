"""Ticks of logarithmic axes, with plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator, NullLocator


def ratio_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis of ratios about 1: evenly apart where they differ little."""
    if high >= 30:
        return log_ticks(low, high)
    found = [1, 1.5, 2, 3, 5, 10] if high > 2 else MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    return list(dict.fromkeys(round(float(tick), 3) for tick in found if low <= tick <= high)) or [1.0]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis: powers of ten where two lie on it, else more; else its middle."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leading in ((1,), (1, 2, 5), range(1, 10)):
        found = [float(f"{digit}e{power}") for power in powers for digit in leading]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) > 1:
            return found
    return [float(f"{math.sqrt(low * high):.2g}")]


def plain_log(axis: Axis, ticks: Sequence[float]) -> None:
    """Ticks at these places with plain numbers; as many as have room."""
    step = -(-len(ticks) // 6)
    axis.set_ticks(list(ticks)[::-1][::step], [f"{tick:g}" for tick in list(ticks)[::-1][::step]])
    axis.set_minor_locator(NullLocator())
