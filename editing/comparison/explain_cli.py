"""The command `editing explain-metric`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from editing.comparison.properties import PROPERTIES
from editing.metrics.alarms import FACTOR
from editing.metrics.definitions import DEFINITIONS, HERE, LEGEND, Definition, definition
from tracer.console import AsJson, reported, result

COLUMNS = {
    name: Definition(name, formula, "nothing", unit, HERE)
    for name, formula, unit in (
        ("n", "cases behind the numbers, of costs edits; a range where scores differ", "count"),
        ("half_width", "half of the 95 % interval of the mean beside it, over cases", "as the mean"),
        ("not editable", "cases whose edit was refused or could not be made; they stay among the n", "count"),
        ("alarm", f"collapsed: perplexity_ratio above {FACTOR:g} (--factor) or no number; no: neither", "word"),
    )
}


def _explained() -> dict[str, Definition]:
    """Every metric, then every property; what is both is the metric, with a note."""
    found = dict(DEFINITIONS)
    for name, one in PROPERTIES.items():
        said = Definition(name, one.said, f"those of {', '.join(one.metrics)}", "0 to 1, more is better", HERE)
        both = found.get(name)
        found[name] = said if both is None else dataclasses.replace(both, note=f"As a property: {one.said}.")
    return found


EXPLAINED = _explained()


def explain_metric(
    name: Annotated[
        str | None, typer.Argument(help="A metric, property or column as tables name it; none: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a metric, or a property that editors are ranked by, means: formula, prompts, unit and source."""
    with reported():
        if name is None:
            result({"metrics": list(EXPLAINED)}, "\n".join(EXPLAINED), as_json=as_json)
        else:
            found = definition(name, EXPLAINED | COLUMNS)
            symbols = f"\n\n{LEGEND}" if name in DEFINITIONS else ""
            result(vars(found), f"{found}{symbols}", as_json=as_json)
