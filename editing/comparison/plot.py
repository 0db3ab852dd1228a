"""Figures of a comparison: properties side by side, scores along batches and sequences, time against quality."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from editing.comparison.folder import Comparison
from editing.comparison.labels import name_points
from editing.comparison.ticks import log_ticks, plain_log, ratio_ticks
from editing.evaluation.summary import edit_seconds
from tracer.plot import STYLE, NotebookFigure

HUES = {
    "locate then edit": "Oranges",
    "fine tuning": "Greys",
    "meta learning": "Blues",
    "added parameters": "Purples",
    "memory": "Greens",
    "others": "pink_r",
}
MARKS = "osD^vPX*<>hp"
QUALITY = ("reliability", "generalization", "portability", "locality")
COURSE = ("reliability_token_acc", "generalization_token_acc", "locality_agreement", "perplexity_ratio")
LINES = ("-", (0, (4, 1.5)), (0, (1.5, 1.2)))  # the later editors of a large family
MOST_PANELS = 5  # in a row


def plot_properties(comparison: Comparison, table: pd.DataFrame) -> Figure | None:
    """A panel for each property, a row for each editor, with 95 % intervals; 100 is best. None without properties.

    Args:
        comparison: whose editors are drawn.
        table: from `profile`.
    """
    if table.empty:
        return None
    names, editors = list(dict.fromkeys(table["property"])), _by_family(comparison)
    colours, _ = _looks(comparison)
    columns = min(MOST_PANELS, len(names))
    rows = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE):
        height = 0.2 * len(editors) + 0.75
        figure = NotebookFigure(figsize=(1.5 + 1.45 * columns, height * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for panel, name in zip(panels.ravel(), names, strict=False):
            _dots(panel, table.loc[table["property"] == name].set_index("editor").reindex(editors), colours)
            panel.set_title(name.replace("-", " "))
        for panel in panels.ravel()[len(names) :]:
            panel.set_visible(False)
        for panel in panels[:, 0]:
            panel.set_yticks(range(len(editors)), editors)
            panel.set_ylim(len(editors) - 0.4, -0.6)
    return figure


def plot_course(comparison: Comparison, frame: pd.DataFrame, data: str, protocol: str) -> Figure | None:
    """Scores against the size of a batch or the edits made: a row for each score, a column for each family of editors.

    Bands are 95 % intervals. None where this was not measured.

    Args:
        comparison: whose editors are drawn.
        frame: from `scores_frame`.
        data: name of a data file.
        protocol: "batch" or "sequential".
    """
    rows = frame.loc[(frame["data"] == data) & (frame["protocol"] == protocol) & (frame["cases"] == "all")]
    rows = rows.loc[rows["when"] == "after"]
    names = [name for name in COURSE if name in set(rows["score"])]
    there = [editor for editor in _by_family(comparison) if editor in set(rows["editor"])]
    families = list(dict.fromkeys(map(comparison.family, there)))
    if not names:
        return None
    colours, marks = _looks(comparison)
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(2.1 * len(families) + 0.7, 1.75 * len(names) + 1.5), layout="constrained")
        panels = figure.subplots(len(names), len(families), squeeze=False, sharex=True, sharey="row")
        for name, line in zip(names, panels, strict=True):
            for family, panel in zip(families, line, strict=True):
                editors = [editor for editor in there if comparison.family(editor) == family]
                _curves(panel, rows.loc[rows["score"] == name], editors, colours, marks)
            _course_axis(line[0], name)
        for family, column in zip(families, panels.T, strict=True):
            column[0].set_title(family)
            column[-1].set_xlabel("edits at once" if protocol == "batch" else "edits made")
            plain_log(column[-1].xaxis, sorted(set(rows["edits"])))
            column[-1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.34), frameon=False, fontsize=7,
                              handlelength=1.6)  # fmt: skip
    return figure


def plot_costs(comparison: Comparison, table: pd.DataFrame) -> Figure | None:
    """Quality against seconds an edit; quality is the mean of the measured ones of `QUALITY`. None without either.

    The seconds are those of the costs, where every editor has them, else those of the cases.

    Args:
        comparison: whose editors are drawn.
        table: from `profile`.
    """
    wide = table.pivot(index="editor", columns="property", values="value")
    names = [name for name in QUALITY if name in wide]
    if not names:
        return None
    quality = {str(editor): float(np.mean(row)) for editor, row in zip(wide.index, wide[names].to_numpy(), strict=True)}
    drawn = [editor for editor, value in quality.items() if not np.isnan(value)]
    alone = all(editor in comparison.costs for editor in drawn)
    seconds = {
        editor: comparison.costs[editor]["edit_seconds"] if alone else _seconds(comparison, editor) for editor in drawn
    }
    known = {editor: value for editor, value in seconds.items() if value > 0}
    if not known:
        return None
    colours, marks = _looks(comparison)
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(5.6, 4.0), layout="constrained")
        axes = figure.subplots()
        how = "made alone" if alone else "a share, where computed at once"
        axes.set(xscale="log", xlabel=f"seconds an edit (median; {how})", ylabel="quality, per cent")
        axes.set_title(f"quality: mean of {', '.join(names)}", loc="left", fontsize=8)
        places = {editor: (value, quality[editor]) for editor, value in known.items()}
        for editor, (x, y) in places.items():
            axes.plot(x, y, marks[editor], color=colours[editor], markersize=5)
        axes.margins(x=0.18, y=0.08)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
        plain_log(axes.xaxis, log_ticks(*axes.get_xlim()))
        name_points(figure, axes, places, colours)
    return figure


def _dots(panel: Axes, rows: pd.DataFrame, colours: dict[str, tuple]) -> None:
    for at, (editor, row) in enumerate(rows.iterrows()):
        if not np.isnan(row["value"]):
            panel.plot([row["low"], row["high"]], [at, at], "-", color=colours[str(editor)], linewidth=1.6)
            panel.plot(row["value"], at, "o", color=colours[str(editor)], markersize=3.6)
    panel.set(xlim=(-4, 104), xticks=(0, 50, 100))
    panel.grid(axis="both", alpha=0.25, linewidth=0.5)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _curves(
    panel: Axes, rows: pd.DataFrame, editors: Sequence[str], colours: dict[str, tuple], marks: dict[str, str]
) -> None:
    for number, editor in enumerate(editors):
        line, colour = rows.loc[rows["editor"] == editor].sort_values(by="edits"), colours[editor]
        dashes = LINES[number * len(LINES) // max(len(editors), 2 * len(LINES))]
        half = line["half_width"].fillna(0)
        panel.plot(line["edits"], line["mean"], marks[editor], linestyle=dashes, color=colour, markersize=3.2,
                   linewidth=1.2, label=editor)  # fmt: skip
        panel.fill_between(line["edits"], line["mean"] - half, line["mean"] + half, color=colour, alpha=0.1,
                           linewidth=0)  # fmt: skip
    panel.set(xscale="log")
    panel.grid(alpha=0.25, linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def _course_axis(panel: Axes, name: str) -> None:
    """The axis of a row of panels: per cent, or the growth of perplexity on a logarithmic scale."""
    word = name.replace("_token_acc", "").replace("_agreement", "").replace("_", " ")
    if name != "perplexity_ratio":
        panel.set(ylim=(-3, 103), ylabel=f"{word}, per cent")
        return
    panel.set(yscale="log", ylabel=word)
    low, high = panel.get_ylim()
    plain_log(panel.yaxis, ratio_ticks(low, high))


def _by_family(comparison: Comparison) -> list[str]:
    order = [*HUES]
    families = {editor: comparison.family(editor) for editor in comparison.editors}
    return sorted(families, key=lambda editor: order.index(families[editor]) if families[editor] in order else 99)


def _looks(comparison: Comparison) -> tuple[dict[str, tuple], dict[str, str]]:
    """A colour and a mark for each editor: a family has one hue."""
    groups: dict[str, list[str]] = {}
    for editor in comparison.editors:
        groups.setdefault(comparison.family(editor), []).append(editor)
    colours, marks = {}, {}
    for name, editors in groups.items():
        shades = matplotlib.colormaps[HUES.get(name, HUES["others"])](np.linspace(0.9, 0.5, len(editors)))
        colours |= dict(zip(editors, map(tuple, shades), strict=True))
        marks |= {editor: MARKS[at % len(MARKS)] for at, editor in enumerate(editors)}
    return colours, marks


def _seconds(comparison: Comparison, editor: str) -> float:
    """The median over data files of the median time of a single edit; NaN where unknown."""
    found: Sequence[float] = [
        edit_seconds(evaluation.cases)[0]
        for (_, protocol, name), evaluation in comparison.evaluations.items()
        if name == editor and protocol == "single"
    ]
    return float(np.nanmedian(found)) if np.isfinite(found).any() else float("nan")
