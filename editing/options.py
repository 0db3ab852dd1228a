"""Options of more than one command, and what their text means."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from editing.editors import EDITORS
from editing.errors import RequestError
from tracer.plan import MOST_SEED

EditorName = Annotated[str, typer.Option("--editor", help=f"{', '.join(EDITORS)}.")]
Layer = Annotated[
    int | None,
    typer.Option(
        help="The MLP to write to, or the middle of several; not for kn. Default: located by tracing, of ft, grace and "
        "calinet their own."
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Another setting of the editor, NAME=VALUE; repeatable.")
]
Seed = Annotated[
    int, typer.Option(min=0, max=MOST_SEED, help="Of whatever is drawn: random prefixes, texts the model samples.")
]


def listed_numbers(listed: str, option: str, what: str = "whole numbers") -> tuple[int, ...]:
    """The numbers in a comma-separated option.

    Raises:
        RequestError: something else stands there.
    """
    try:
        return tuple(int(number) for number in listed.split(",") if number.strip())
    except ValueError as error:
        raise RequestError(f"{option} {listed!r} is no list of {what}. Write e.g. {option} 0,2,4.") from error


def named_values(given: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """NAME=VALUE pairs; a value is JSON, or a literal of Python such as True or (3, 4), where it is one, else text.

    Raises:
        RequestError: one without a name or a value.
    """
    found: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise RequestError(f"{option} {one!r} says no value. Write {option} {one or 'clamp'}=2.")
        try:
            found[name] = hashable(json.loads(value))
        except ValueError:
            found[name] = _python_value(value)
    return found


def _python_value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def hashable(value: Any) -> Any:
    """JSON's lists as tuples, which frozen settings hold."""
    return tuple(map(hashable, value)) if isinstance(value, list) else value
