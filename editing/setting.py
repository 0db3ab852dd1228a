"""One setting of an editor: what is no number is refused by its name, before anything runs."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

from editing.errors import RequestError


def whole(name: str, value: Any) -> int:
    """`value` as an int; numpy's integers are whole numbers too.

    Raises:
        RequestError: it is none.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise RequestError(f"{name}={value!r} is no whole number.") from error


def check_real(name: str, value: Any, *, or_none: bool = False) -> None:
    """Raises RequestError where `value` is no number; NaN and infinity are left to who knows the range."""
    if not isinstance(value, Real) and not (or_none and value is None):
        raise RequestError(f"{name}={value!r} is no number.")
