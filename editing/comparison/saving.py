"""Writes what a comparison says into its folder: records, tables, figures, and one page of them."""

from __future__ import annotations

from pathlib import Path

from editing.comparison.folder import Comparison
from editing.comparison.plot import plot_costs, plot_course, plot_properties
from editing.comparison.profile import profile
from editing.comparison.report import save_comparison_report
from editing.comparison.tables import ShownTable, case_records, latex, markdown, scores_frame, shown_tables
from tracer.plot import save_figure
from tracer.storage import atomic_path, to_json


def save_comparison(comparison: Comparison) -> tuple[list[Path], list[ShownTable]]:
    """Writes records.jsonl, table.csv, table.md, table.tex, figures and report.html; returns paths and tables."""
    folder, frame, properties = comparison.folder, scores_frame(comparison), profile(comparison)
    tables = shown_tables(comparison, frame)
    texts = {
        "records.jsonl": "".join(f"{to_json(record)}\n" for record in case_records(comparison)),
        "table.csv": frame.to_csv(index=False),
        "table.md": markdown(tables),
        "table.tex": latex(tables),
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    figures = {"properties": plot_properties(comparison, properties), "costs": plot_costs(comparison, properties)}
    for data in dict.fromkeys(frame["data"]):
        for protocol in ("batch", "sequential"):
            figures[f"{protocol} {data}"] = plot_course(comparison, frame, data, protocol)
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    paths = [
        save_figure(figure, folder / "figures" / f"{name.replace(' ', '_')}.png") for name, figure in drawn.items()
    ]
    return [*(folder / name for name in texts), *paths, save_comparison_report(comparison, tables)], tables
