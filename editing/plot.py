"""Figures of edits: what each prompt said before and after."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tracer.plot import STYLE, NotebookFigure

if TYPE_CHECKING:
    from editing.workflow import Report

NEW, OLD = "#d94801", "#2171b5"
WORDS = {"edited": "edited prompt", "paraphrase": "other words", "neighbour": "should stay"}


def plot_shown(report: Report) -> Figure:
    """Probabilities of the new and the old answer for each prompt, before the edit (open) and after (filled).

    An arrow runs from before to after. Prompts stand in the order edited, paraphrases, neighbours.
    """
    rows = report.shown
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(9.5, 1.3 + 0.48 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            _arrow(axes, place - 0.16, row.new_before, row.new_after, NEW)
            _arrow(axes, place + 0.16, row.old_before, row.old_after, OLD)
        labels = ["\n".join(textwrap.wrap(row.prompt, 58)) for row in rows]
        axes.set_yticks(np.arange(len(rows)), labels)
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color({"edited": "black", "paraphrase": "#444444", "neighbour": "#777777"}[row.kind])
        _kinds(axes, [row.kind for row in rows])
        axes.set(xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.5), xlabel="probability of the answer")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        _legend(axes, report.request.new.strip())
        axes.set_title(f"{report.request.subject} → {report.request.new.strip()}: {report.how}", loc="left",
                       fontsize=11, pad=28)  # fmt: skip
    return figure


def _arrow(axes: Axes, height: float, before: float, after: float, colour: str) -> None:
    axes.plot([before, after], [height, height], color=colour, linewidth=1.6, alpha=0.45, solid_capstyle="round")
    axes.plot(before, height, "o", markersize=6, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.4)
    axes.plot(after, height, "o", markersize=6.5, color=colour)


def _kinds(axes: Axes, kinds: list[str]) -> None:
    """A line between the kinds of prompt, and each kind's name at the right."""
    for kind in dict.fromkeys(kinds):
        first = kinds.index(kind)
        if first:
            axes.axhline(first - 0.5, color="#bbbbbb", linewidth=0.8)
        axes.text(1.04, first, WORDS[kind], transform=axes.get_yaxis_transform(), va="center", color="#555555")


def _legend(axes: Axes, new: str) -> None:
    for colour, name in ((NEW, f"new answer ({new})"), (OLD, "the prompt's own answer")):
        axes.plot([], [], "o", color=colour, label=name)
    axes.plot([], [], "o", markerfacecolor="white", markeredgecolor="#555555", label="before")
    axes.plot([], [], "o", color="#555555", label="after")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, frameon=False, borderpad=0, columnspacing=1.2)
