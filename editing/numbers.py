"""Settings that are numbers, seen to when they are written down: a model that has begun to run is too late."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from numbers import Real
from typing import Any

from editing.errors import RequestError


def whole(name: str, value: Any, instead: int) -> int:
    """`value` as an int; numpy's integers are whole numbers too.

    Args:
        name: of the setting.
        value: given.
        instead: what to write.

    Raises:
        RequestError: it is none.
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise RequestError(f"{name}={value!r} is no whole number. Write {name}={instead}.")
    return found


def check_whole(settings: object, instead: Mapping[str, int], *, least: int | None = 1) -> None:
    """Sees that these settings are whole numbers, numpy's too, of at least `least`.

    Args:
        settings: a frozen value.
        instead: what to write, by the settings' names.
        least: that they may be; None: any.

    Raises:
        RequestError: one is not.
    """
    for name, good in instead.items():
        found = whole(name, getattr(settings, name), good)
        if least is not None and found < least:
            raise RequestError(f"{name}={found} is below {least}. Write {name}={good}.")
        object.__setattr__(settings, name, found)


def check_above_zero(settings: object, instead: Mapping[str, float]) -> None:
    """Sees that these settings are numbers above 0; arguments and errors as those of `check_whole`."""
    for name, good in instead.items():
        value = getattr(settings, name)
        if not (is_number(value) and value > 0):
            raise RequestError(f"{name}={value!r} is no number above 0. Write {name}={good}.")


def check_not_negative(settings: object, instead: Mapping[str, float]) -> None:
    """Sees that these settings are numbers of 0 or more; arguments and errors as those of `check_whole`."""
    for name, good in instead.items():
        value = getattr(settings, name)
        if not (is_number(value) and value >= 0):
            raise RequestError(f"{name}={value!r} is no number of 0 or more. Write {name}={good}.")


def check_real(name: str, value: object, *, or_none: bool = False) -> None:
    """Raises RequestError where `value` is no number; NaN and infinity are left to who knows the range."""
    if not isinstance(value, Real) and not (or_none and value is None):
        raise RequestError(f"{name}={value!r} is no number.")


def is_number(value: object) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
