"""What the text of a command's option means."""

from __future__ import annotations

from editing.errors import RequestError


def whole_numbers(listed: str, option: str, what: str = "whole numbers") -> tuple[int, ...]:
    """The numbers in a comma-separated option.

    Raises:
        RequestError: something else stands there.
    """
    try:
        return tuple(int(number) for number in listed.split(",") if number.strip())
    except ValueError as error:
        raise RequestError(f"{option} {listed!r} is no list of {what}. Write e.g. {option} 0,2,4.") from error
