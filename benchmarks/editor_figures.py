"""Figures of every editor on several models, from means with their intervals.

`rows` are of one data file and one protocol: columns model, key (of `EDITORS`), editor (as the literature writes it),
score, when ("before" or "after" the edit), edits, mean, half_width.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from editing.comparison.plot import HUES, MARKS
from editing.comparison.ticks import ratio_ticks
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
FILLS = ("full", "none", "left", "right")  # of the models' marks
DASHES = ((0, (1, 2)), (0, (4, 2)), (0, (6, 2, 1, 2)), "-")  # of the lines of the unedited models
GREY = "#888888"
UNEDITED = (0, (1, 1.5))  # the dashes of its line beside curves
ROW = 0.72  # of the distance between two editors, for the marks of all models
CEILING = 10.0  # of perplexity ratios: a ruined model's would flatten every other curve
SINGLES_KEY = "per cent; bars: 95 % intervals over the records; no mark: not run"
UNKNOWN = "#b07aa1"
OWN = {  # colours of the family whose curves lie close together; other families have shades of one hue
    "r-rome": "#7f2704",
    "rome": "#e6550d",
    "p-rome": "#fd8d3c",
    "memit": "#eab308",
    "pmet": "#f4a582",
    "emmet": "#7a8b29",
    "alphaedit": "#c51b7d",
    "kn": "#d8b365",
}


def plot_singles(rows: pd.DataFrame) -> Figure:
    """A panel for each score, a row for each editor, a mark with its 95 % interval for each model.

    Vertical lines are the unedited models. An editor without a mark was not run on that model.

    Raises:
        ValueError: more models than there are kinds of marks.
    """
    names = [name for name in TITLES if name in set(rows["score"])]
    models, editors = sorted(set(rows["model"])), _by_family(rows)
    if len(models) > len(FILLS):
        raise ValueError(f"{len(models)} models; a figure holds {len(FILLS)}. Draw fewer at a time.")
    with matplotlib.rc_context(STYLE):
        size = (1.2 + 1.35 * len(names), 1.45 + 0.27 * len(editors))
        figure = NotebookFigure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        for name, panel in zip(names, panels, strict=True):
            for at, model in enumerate(models):
                of_model = rows.loc[(rows["score"] == name) & (rows["model"] == model)]
                shift = ((at + 0.5) / len(models) - 0.5) * ROW
                _dots(panel, of_model.loc[of_model["when"] == "after"], editors, shift, FILLS[at])
                for before in of_model.loc[of_model["when"] == "before", "mean"].head(1):
                    panel.axvline(before, color=GREY, linewidth=0.9, linestyle=DASHES[at])
            _percent_panel(panel, TITLES[name])
        panels[0].set_yticks(range(len(editors)), editors)
        panels[0].set_ylim(len(editors) - 0.4, -0.6)
        _legend(figure, models)
    return figure


def _dots(panel: Axes, rows: pd.DataFrame, editors: Sequence[str], shift: float, fill: str) -> None:
    for row in rows.itertuples():
        height, colour = editors.index(str(row.editor)) + shift, _colour(str(row.key))
        half = np.nan_to_num(float(row.half_width))
        panel.plot([row.mean - half, row.mean + half], [height, height], color=colour, linewidth=1.3)
        panel.plot(row.mean, height, "o", color=colour, markersize=4.2, fillstyle=fill, markerfacecoloralt="white",
                   markerfacecolor="white" if fill == "none" else colour)  # fmt: skip


def _percent_panel(panel: Axes, title: str) -> None:
    panel.set_title(title)
    panel.set(xlim=(-4, 104), xticks=(0, 50, 100))
    panel.grid(axis="both", alpha=0.25, linewidth=0.5)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _legend(figure: Figure, models: Sequence[str]) -> None:
    """A model a column: its mark, and below it the line of its unedited self."""
    handles, labels = [], []
    for model, fill, dashes in zip(models, FILLS, DASHES, strict=False):
        face = "white" if fill == "none" else "#333333"
        mark = Line2D([], [], color="#333333", marker="o", markersize=4.5, linewidth=1.3, fillstyle=fill,
                      markerfacecolor=face, markerfacecoloralt="white")  # fmt: skip
        handles += [mark, Line2D([], [], color=GREY, linewidth=0.9, linestyle=dashes)]
        labels += [model, f"{model}, unedited"]
    figure.legend(handles, labels, title=SINGLES_KEY, loc="outside lower center", ncols=len(models), frameon=False)


def plot_course(rows: pd.DataFrame, protocol: str) -> Figure:
    """Scores against the size of a batch or the edits made: a row for each score, a column for each model.

    Bands are 95 % intervals over the records, dotted lines the unedited model. A single edit, one record, is left out.
    Perplexity ratios above `CEILING` are drawn at it.
    """
    rows = rows.loc[rows["edits"] > 1]
    unedited, rows = rows.loc[rows["when"] == "before"], rows.loc[rows["when"] == "after"]
    names = [name for name in COURSE if name in set(rows["score"])]
    models, editors = sorted(set(rows["model"])), _by_family(rows)
    looks = {editor: _look(str(rows.loc[rows["editor"] == editor, "key"].iloc[0])) for editor in editors}
    with matplotlib.rc_context(STYLE):
        size = (3.1 * len(models) + 1.7, 1.7 * len(names) + 0.6)
        figure = NotebookFigure(figsize=size, layout="constrained")
        panels = figure.subplots(len(names), len(models), squeeze=False, sharex=True, sharey="row")
        for name, line in zip(names, panels, strict=True):
            of_score = rows.loc[rows["score"] == name]
            cut = name == "perplexity_ratio" and bool((of_score["mean"] > CEILING).any())
            if cut:
                of_score = of_score.assign(mean=of_score["mean"].clip(upper=CEILING), half_width=np.nan)
            for model, panel in zip(models, line, strict=True):
                _curves(panel, of_score.loc[of_score["model"] == model], looks, percent=name != "perplexity_ratio")
                asked = unedited.loc[(unedited["score"] == name) & (unedited["model"] == model)]
                once = asked.drop_duplicates("edits").sort_values("edits")
                if len(once):
                    panel.plot(once["edits"], once["mean"], color=GREY, linewidth=1.0, linestyle=UNEDITED)
            _score_axis(line[0], name, cut=cut)
        counts = sorted(set(rows["edits"]))
        for model, column in zip(models, panels.T, strict=True):
            column[0].set_title(model)
            column[-1].set(xscale="log", xlabel="edits at once" if protocol == "batch" else "edits made")
            column[-1].set_xticks(counts, list(map(str, counts)))
            column[-1].minorticks_off()
        marks = [
            Line2D([], [], color=colour, marker=mark, markersize=4, linewidth=1.3) for colour, mark in looks.values()
        ]
        labels = [*looks]
        if len(unedited):
            marks.append(Line2D([], [], color=GREY, linewidth=1.0, linestyle=UNEDITED))
            labels.append("unedited")
        figure.legend(marks, labels, loc="outside right center", frameon=False)
    return figure


def _curves(panel: Axes, rows: pd.DataFrame, looks: dict[str, tuple[tuple, str]], *, percent: bool) -> None:
    for editor, (colour, mark) in looks.items():
        line = rows.loc[rows["editor"] == editor].sort_values("edits")
        half = line["half_width"].fillna(0)
        low, high = (line["mean"] - half).clip(lower=0), (line["mean"] + half).clip(upper=100 if percent else None)
        panel.plot(line["edits"], line["mean"], marker=mark, markersize=3.4, linewidth=1.3, color=colour)
        panel.fill_between(line["edits"], low, high, color=colour, alpha=0.1, linewidth=0)
    panel.grid(alpha=0.25, linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def _score_axis(panel: Axes, name: str, *, cut: bool) -> None:
    """Per cent from 0, or the growth of perplexity on a logarithmic scale, `cut` where some grows beyond its end."""
    panel.set_ylabel(COURSE[name])
    if name != "perplexity_ratio":
        panel.set_ylim(-3, 102)
        return
    panel.set_yscale("log")
    if cut:
        panel.set_ylim(top=1.12 * CEILING)
    ticks = ratio_ticks(*panel.get_ylim())
    panel.set_yticks(ticks, [f"{tick:g}+" if cut and tick == CEILING else f"{tick:g}" for tick in ticks])
    panel.yaxis.set_minor_locator(NullLocator())


def _by_family(rows: pd.DataFrame) -> list[str]:
    """The editors, those of a family side by side in the order of `FAMILIES`, unknown ones last."""
    order = [key for members in FAMILIES.values() for key in members]
    places = {str(editor): str(key) for editor, key in zip(rows["editor"], rows["key"], strict=True)}
    return sorted(places, key=lambda editor: order.index(places[editor]) if places[editor] in order else len(order))


def _look(key: str) -> tuple[tuple, str]:
    """An editor's colour and mark, the same in every figure of curves."""
    keys = [each for members in FAMILIES.values() for each in members]
    return _colour(key), MARKS[keys.index(key) % len(MARKS)] if key in keys else MARKS[-1]


def _colour(key: str) -> tuple:
    """An editor's own in every figure; a family has one hue, but where curves would lie close together."""
    if key in OWN:
        return matplotlib.colors.to_rgba(OWN[key])
    for family, members in FAMILIES.items():
        if key in members:
            shades = np.linspace(0.9, 0.4, len(members))
            return tuple(matplotlib.colormaps[HUES[family]](shades[list(members).index(key)]))
    return matplotlib.colors.to_rgba(UNKNOWN)
