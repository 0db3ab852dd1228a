"""Settings that are numbers, seen to when they are written down: a model that has begun to run is too late."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from editing.errors import RequestError
from tracer.plan import MOST_SEED


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


def checked_seed(seed: Any) -> int:
    """`seed` as an int from 0 to `MOST_SEED`; raises RequestError where it is none."""
    found = whole("seed", seed, 0)
    if not 0 <= found <= MOST_SEED:
        raise RequestError(f"seed={found} is not from 0 to {MOST_SEED}. Write seed=0.")
    return found


def check_whole(settings: object, instead: Mapping[str, int], *, least: int | None = 1, or_none: bool = False) -> None:
    """Sees that these settings are whole numbers, numpy's too, of at least `least`.

    Args:
        settings: a frozen value.
        instead: what to write, by the settings' names.
        least: the smallest value allowed; None: any.
        or_none: None will do as well.

    Raises:
        RequestError: one is not.
    """
    for name, good in instead.items():
        if or_none and getattr(settings, name) is None:
            continue
        found = whole(name, getattr(settings, name), good)
        if least is not None and found < least:
            other = ", or None" if or_none else ""
            raise RequestError(f"{name}={found} is below {least}. Write {name}={good}{other}.")
        object.__setattr__(settings, name, found)


def check_above_zero(settings: object, instead: Mapping[str, float], *, or_none: bool = False) -> None:
    """Sees that these settings are finite numbers above 0; arguments and errors as those of `check_whole`."""
    _check(settings, instead, or_none, "above 0", lambda value: value > 0)


def check_not_negative(settings: object, instead: Mapping[str, float], *, or_none: bool = False) -> None:
    """Sees that these settings are finite numbers of 0 or more; arguments and errors as those of `check_whole`."""
    _check(settings, instead, or_none, "of 0 or more", lambda value: value >= 0)


def check_share(settings: object, instead: Mapping[str, float]) -> None:
    """Sees that these settings are numbers from 0 to 1; arguments and errors as those of `check_whole`."""
    _check(settings, instead, False, "from 0 to 1", lambda value: 0 <= value <= 1)


def check_number(settings: object, instead: Mapping[str, float]) -> None:
    """Sees that these settings are finite numbers; arguments and errors as those of `check_whole`."""
    _check(settings, instead, False, "that is finite", lambda value: True)


def check_flag(settings: object, *names: str) -> None:
    """Raises RequestError where one of these settings is neither True nor False."""
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, bool):
            raise RequestError(f"{name}={value!r} is neither True nor False. Write {name}=True or {name}=False.")


def is_number(value: object) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _check(
    settings: object, instead: Mapping[str, float], or_none: bool, kind: str, good: Callable[[float], bool]
) -> None:
    for name, number in instead.items():
        value = getattr(settings, name)
        if not (or_none and value is None or is_number(value) and good(value)):
            other = ", or None" if or_none else ""
            raise RequestError(f"{name}={value!r} is no number {kind}. Write {name}={number}{other}.")
