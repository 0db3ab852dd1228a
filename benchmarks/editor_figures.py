"""Figures of every editor on several models, from means with their intervals.

`rows` are of one data file and one protocol: columns model, editor, score, when ("before" or "after" the edit), edits,
mean, half_width; percentages where `unit` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from editing.comparison.plot import FAMILIES as HUES
from editing.comparison.plot import MARKS, ratio_ticks
from editing.editors import FAMILIES
from tracer.plot import STYLE, NotebookFigure

TITLES = {
    "S": "S",
    "reliability_token_acc": "reliability",
    "generalization_token_acc": "generalization",
    "locality_agreement": "locality",
    "subject_replace_token_acc": "subject replaced",
    "reversed_relation_token_acc": "reversed relation",
    "one_hop_token_acc": "one hop",
    "other_relation_agreement": "other relations",
    "distracting_neighborhood_agreement": "distracting\nneighbours",
}
COURSE = {
    "reliability_token_acc": "reliability, %",
    "generalization_token_acc": "generalization, %",
    "locality_agreement": "locality, %",
    "perplexity_ratio": "perplexity, times\nthe unedited",
}
FACES = ("full", "none", "left", "right")  # a model's marks


def plot_singles(rows: pd.DataFrame) -> Figure:
    """A panel for each score, a row for each editor, a mark with its 95 % interval for each model.

    Dotted lines are the unedited models.
    """
    names = [name for name in TITLES if name in set(rows["score"])]
    models, editors = list(dict.fromkeys(rows["model"])), _by_family(rows["editor"])
    colours = _colours(editors)
    with matplotlib.rc_context(STYLE):
        size = (1.2 + 1.35 * len(names), 1.1 + 0.27 * len(editors))
        figure = NotebookFigure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        for name, panel in zip(names, panels, strict=True):
            of_score = rows.loc[rows["score"] == name]
            for at, model in enumerate(models):
                of_model = of_score.loc[of_score["model"] == model]
                shift = (at - (len(models) - 1) / 2) * 0.34
                _dots(panel, of_model.loc[of_model["when"] == "after"], editors, colours, shift, FACES[at])
                before = of_model.loc[of_model["when"] == "before", "mean"]
                if len(before):
                    panel.axvline(
                        before.iloc[0], color="#888888", linewidth=0.9, linestyle=((0, (1, 2)), (0, (4, 2)))[at % 2]
                    )
            _percent_panel(panel, TITLES[name])
        panels[0].set_yticks(range(len(editors)), editors)
        panels[0].set_ylim(len(editors) - 0.4, -0.6)
        _legend(figure, models)
    return figure


def _dots(
    panel: Axes, rows: pd.DataFrame, editors: Sequence[str], colours: Mapping[str, tuple], shift: float, face: str
) -> None:
    for row in rows.itertuples():
        height, colour = editors.index(str(row.editor)) + shift, colours[str(row.editor)]
        half = np.nan_to_num(float(row.half_width))
        panel.plot([row.mean - half, row.mean + half], [height, height], color=colour, linewidth=1.3)
        panel.plot(row.mean, height, "o", color=colour, markersize=4.2, fillstyle=face, markerfacecoloralt="white",
                   markerfacecolor="white" if face == "none" else colour)  # fmt: skip


def _percent_panel(panel: Axes, title: str) -> None:
    panel.set_title(title)
    panel.set(xlim=(-4, 104), xticks=(0, 50, 100))
    panel.grid(axis="both", alpha=0.25, linewidth=0.5)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _legend(figure: Figure, models: Sequence[str]) -> None:
    marks = [
        Line2D(
            [],
            [],
            color="#333333",
            marker="o",
            markersize=4.5,
            linewidth=1.3,
            fillstyle=face,
            markerfacecolor="white" if face == "none" else "#333333",
        )  # fmt: skip
        for face in FACES[: len(models)]
    ]
    before = [Line2D([], [], color="#888888", linewidth=0.9, linestyle=(0, dashes)) for dashes in ((1, 2), (4, 2))]
    names = [*models, *(f"{model} unedited" for model in models)]
    figure.legend([*marks, *before[: len(models)]], names, loc="outside lower center", ncols=4, frameon=False)


def plot_course(rows: pd.DataFrame, protocol: str) -> Figure:
    """Scores against the size of a batch or the edits made: a row for each score, a column for each model.

    Of all edits made so far. Bands are 95 % intervals.
    """
    rows = rows.loc[rows["when"] == "after"]
    names = [name for name in COURSE if name in set(rows["score"])]
    models, editors = list(dict.fromkeys(rows["model"])), _by_family(rows["editor"])
    colours = _colours(editors)
    with matplotlib.rc_context(STYLE):
        size = (3.1 * len(models) + 1.7, 1.7 * len(names) + 0.6)
        figure = NotebookFigure(figsize=size, layout="constrained")
        panels = figure.subplots(len(names), len(models), squeeze=False, sharex=True, sharey="row")
        for name, line in zip(names, panels, strict=True):
            for model, panel in zip(models, line, strict=True):
                _curves(panel, rows.loc[(rows["score"] == name) & (rows["model"] == model)], editors, colours)
            line[0].set_ylabel(COURSE[name])
            if name == "perplexity_ratio":
                _ratio_axis(line[0])
            else:
                line[0].set_ylim(-3, 103)
        counts = sorted(set(rows["edits"]))
        for model, column in zip(models, panels.T, strict=True):
            column[0].set_title(model)
            column[-1].set(xscale="log", xlabel="edits at once" if protocol == "batch" else "edits made")
            column[-1].set_xticks(counts, list(map(str, counts)))
            column[-1].minorticks_off()
        marks = [
            Line2D([], [], color=colours[editor], marker=MARKS[at % len(MARKS)], markersize=4, linewidth=1.3)
            for at, editor in enumerate(editors)
        ]
        figure.legend(marks, editors, loc="outside right center", frameon=False)
    return figure


def _curves(panel: Axes, rows: pd.DataFrame, editors: Sequence[str], colours: Mapping[str, tuple]) -> None:
    for at, editor in enumerate(editors):
        line = rows.loc[rows["editor"] == editor].sort_values("edits")
        half = line["half_width"].fillna(0)
        panel.plot(line["edits"], line["mean"], marker=MARKS[at % len(MARKS)], markersize=3.4, linewidth=1.3,
                   color=colours[editor])  # fmt: skip
        panel.fill_between(line["edits"], line["mean"] - half, line["mean"] + half, color=colours[editor], alpha=0.1,
                           linewidth=0)  # fmt: skip
    panel.grid(alpha=0.25, linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def _ratio_axis(panel: Axes) -> None:
    panel.set_yscale("log")
    ticks = ratio_ticks(*panel.get_ylim())
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.yaxis.set_minor_locator(NullLocator())


def _by_family(editors: pd.Series) -> list[str]:
    """The editors, those of a family side by side, in the order of `FAMILIES`."""
    order = [name for family in FAMILIES.values() for name in family]
    return sorted(set(editors), key=lambda editor: order.index(editor.lower()))


def _colours(editors: Sequence[str]) -> dict[str, tuple]:
    """A family has one hue."""
    colours = {}
    for family, members in FAMILIES.items():
        there = [editor for editor in editors if editor.lower() in members]
        shades = matplotlib.colormaps[HUES[family]](np.linspace(0.9, 0.45, len(there)))
        colours |= dict(zip(there, map(tuple, shades), strict=True))
    return colours
