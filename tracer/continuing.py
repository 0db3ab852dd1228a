"""A folder can be continued only with the settings that made it: a file there holds them, and a difference is named."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tracer.errors import FileFormatError
from tracer.storage import to_json

ABSENT = "absent"


def read_same(
    path: Path, now: Mapping[str, Any], *, what: str, error: type[Exception], but: Collection[str] = ()
) -> dict[str, Any] | None:
    """What a file of an earlier run says, None where there is none; of all in `now` it must say what holds now.

    Args:
        path: of a JSON file with an object in it.
        now: JSON values by name; those that only the file has may be anything.
        what: was made there, in words.
        error: raised where it was something else.
        but: names, as `differences` gives them, that may differ.

    Raises:
        FileFormatError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as damage:
        raise FileFormatError(f"{path} is damaged ({damage}). Give this {what} a folder of its own.") from damage
    if not isinstance(there, dict):
        raise FileFormatError(f"{path} says nothing about a {what}. Give this one a folder of its own.")
    said = "; ".join(differences({name: there.get(name, ABSENT) for name in now}, now, but=but))
    if said:
        raise error(
            f"{path.parent} holds another {what} ({said}). Go on with what made it, or give this one a folder of its "
            f"own (--out)."
        )
    return there


def differences(there: Any, now: Any, *, name: str = "", but: Collection[str] = ()) -> Iterator[str]:
    """What differs between two JSON values, e.g. "settings.window: 10 there, 4 now"."""
    if name in but:
        return
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*there, *now]):
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(there.get(key, ABSENT), now.get(key, ABSENT), name=inner, but=but)
    elif there != now:
        short = [text if len(text) < 60 else f"{text[:56]}..." for text in (to_json(there), to_json(now))]
        yield f"{name}: {short[0]} there, {short[1]} now"
