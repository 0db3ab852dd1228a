"""The command `editing explain-metric`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from editing.comparison.properties import PROPERTIES
from editing.metrics.definitions import DEFINITIONS, HERE, LEGEND, Definition, definition
from tracer.console import AsJson, reported, result


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
    name: Annotated[str | None, typer.Argument(help="A metric or property as tables name it; none: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a metric, or a property that editors are ranked by, means: formula, prompts, unit and source."""
    with reported():
        if name is None:
            result({"metrics": list(EXPLAINED)}, "\n".join(EXPLAINED), as_json=as_json)
        else:
            found = definition(name, EXPLAINED)
            symbols = f"\n\n{LEGEND}" if name in DEFINITIONS else ""
            result(vars(found), f"{found}{symbols}", as_json=as_json)
