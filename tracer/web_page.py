"""A page of one file: a template's marks replaced, numbers as JSON that no text in them can break out of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tracer.storage import to_json

UNIT = 10_000  # effects and shares stand in pages as whole numbers of 1/UNIT, which keeps pages small


def filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with each {{name}} replaced by that part; what is put in may hold a mark's letters."""
    marks = "|".join(re.escape(name) for name in parts)
    return re.sub(rf"\{{\{{({marks})\}}\}}", lambda mark: parts[mark[1]], template)


def script_json(value: Any) -> str:
    """JSON to stand in a script: no text in it can end the script."""
    return to_json(value).replace("<", "\\u003c").replace("\u2028", "\\u2028")
