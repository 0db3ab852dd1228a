"""One web page of a comparison: a ranking by the reader's own weights, the tables, the figures, the definitions.

The page is `report.html` with numbers and figures put in, so it works without a network. Properties and their
resampled values are whole numbers of 1/10000.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from editing.comparison.folder import Comparison
from editing.comparison.profile import measured_properties, property_draws
from editing.comparison.properties import PROPERTIES
from editing.comparison.tables import ShownTable
from editing.metrics.definitions import DEFINITIONS
from tracer.storage import atomic_path
from tracer.web_page import UNIT, filled, script_json

NAME = "report.html"
DRAWS = 400  # resamples that the page holds
WEIGHTS = {"reliability": 1, "generalization": 1, "portability": 1, "locality": 1}
FIGURES = {
    "properties": "Properties, 95 % intervals over resampled cases; 100 is best",
    "costs": "Time against quality",
    "batch": "Edits written at once",
    "sequential": "Edits made one after another",
}


def save_comparison_report(comparison: Comparison, tables: Sequence[ShownTable]) -> Path:
    """Writes report.html beside the comparison's figures; whole or not at all."""
    template = files("editing.comparison").joinpath(NAME).read_text(encoding="utf-8")
    page = filled(template, {"data": script_json(report_data(comparison, tables))})
    path = comparison.folder / NAME
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def report_data(comparison: Comparison, tables: Sequence[ShownTable]) -> dict[str, Any]:
    """What the page shows, as JSON values."""
    measured = measured_properties(comparison)
    values, cases = property_draws(measured, comparison.editors, resamples=DRAWS, seed=0)
    columns = dict.fromkeys(column for table in tables for column in table.cells)
    return {
        "unit": UNIT,
        "about": comparison.about["model"],
        "cases": cases,
        "editors": [{"name": editor, "family": comparison.family(editor)} for editor in comparison.editors],
        "weights": _weights(measured),
        "properties": [
            {
                "name": name,
                "said": PROPERTIES[name].said,
                "draws": {editor: _whole(values[editor][name]) for editor in comparison.editors},
            }
            for name in measured
        ],
        "not_measured": [name for name in PROPERTIES if name not in measured],
        "tables": [
            {
                "title": table.title,
                "source": table.source,
                "columns": list(table.cells.columns),
                "rows": table.cells.astype(str).to_numpy().tolist(),
            }
            for table in tables
        ],
        "figures": [
            {"title": title + path.stem.removeprefix(name).replace("_", ": ", 1), "data": _picture(path)}
            for name, title in FIGURES.items()
            for path in sorted((comparison.folder / "figures").glob(f"{name}*.png"))
        ],
        "definitions": {name: vars(DEFINITIONS[name]) for name in columns if name in DEFINITIONS},
        "left_out": list(comparison.about["left_out"]),
    }


def _weights(measured: Iterable[str]) -> dict[str, int]:
    """What the sliders begin with: where none of `WEIGHTS` was measured all that was weighs the same."""
    found = {name: WEIGHTS.get(name, 0) for name in measured}
    return found if any(found.values()) else dict.fromkeys(found, 1)


def _whole(values: np.ndarray) -> list[int | None]:
    """Whole numbers of 1/UNIT; of an editor that lacks the property none at all."""
    return [None if np.isnan(value) else round(float(value) * UNIT) for value in values] if values[0] >= 0 else []


def _picture(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
