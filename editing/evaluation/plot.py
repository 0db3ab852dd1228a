"""Figures of evaluations: bars with intervals for single edits, curves for batches and sequences."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tracer.plot import STYLE, NotebookFigure

BEFORE, AFTER = "#bdbdbd", "#d94801"
COLOURS = ("#d94801", "#6a51a3", "#2171b5", "#41ab5d", "#636363", "#fdae6b")
PANELS = (
    ("ES", "PS", "NS", "S"),
    ("reliability_token_acc", "generalization_token_acc", "locality_agreement", "specificity_accuracy", "accuracy_S"),
    ("reliability_tf_exact", "reliability_gen_exact", "generalization_tf_exact", "generalization_gen_exact"),
)
WORDS = ("scores", "token accuracy and locality", "whole answers")
MODEL_SCORES = ("perplexity_ratio", "relative_change")
MOST_BARS = 6


def plot_single(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Scores before and after single edits, from `summary`; error bars are 95 % intervals."""
    panels = _panels(table)
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(len(panels), title)
        for (word, names), panel in zip(panels, axes, strict=True):
            for place, (when, colour) in enumerate((("before", BEFORE), ("after", AFTER))):
                rows = table[table["when"] == when].set_index("score").reindex(names)
                at = np.arange(len(names)) + (place - 0.5) * 0.38
                panel.bar(at, rows["mean"], 0.38, color=colour, label=when)
                panel.errorbar(at, rows["mean"], rows["half_width"].fillna(0), fmt="none", ecolor="#333333",
                               elinewidth=0.7, capsize=1.5)  # fmt: skip
            panel.set_xticks(range(len(names)), [_label(name) for name in names])
            _finish(panel, word)
        axes[0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.12), ncols=2)
    return figure


def plot_curves(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Scores against batch size (from `batch_summary`) or number of edits (from `sequential_summary`).

    Bands are 95 % intervals. A sequence gets a panel of its own for perplexity and the weights' change; its
    dashed lines are the success of the last edits when they were made.
    """
    over = "size" if "size" in table else "edits"
    after = table.loc[table["when"] == "after"] if "when" in table else table
    panels = _panels(after)
    model = [name for name in MODEL_SCORES if name in set(after["score"])]
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(len(panels) + bool(model), title)
        for (word, names), panel in zip(panels, axes, strict=False):
            _curves(panel, after, over, names)
            _finish(panel, word)
        if model:
            _curves(axes[-1], after, over, model)
            axes[-1].set_title("the model")
            axes[-1].set_ylim(bottom=0)
        for panel in axes:
            panel.set(xscale="log", xlabel="edits at once" if over == "size" else "edits made")
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(frameon=False, fontsize=7)
    return figure


def _panels(table: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Families of scores that the table has, and which of their members; of other scores alone the first ones."""
    there = set(table["score"])
    chosen = [(word, [name for name in family if name in there]) for word, family in zip(WORDS, PANELS, strict=True)]
    others = [name for name in table["score"].drop_duplicates() if name not in MODEL_SCORES]
    return [(word, names) for word, names in chosen if names] or [("scores", others[:MOST_BARS])]


def _figure(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    figure = NotebookFigure(figsize=(3.6 * panels, 3.2), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False).ravel())
    figure.suptitle(title, fontweight="bold")
    return figure, axes


def _curves(axes: Axes, table: pd.DataFrame, over: str, names: Sequence[str]) -> None:
    for name, colour in zip(names, COLOURS, strict=False):
        rows = table.loc[table["score"] == name].sort_values(by=over)
        half = rows["half_width"].fillna(0)
        axes.plot(rows[over], rows["mean"], "o-", color=colour, markersize=3, linewidth=1.4, label=_label(name, " "))
        axes.fill_between(rows[over], rows["mean"] - half, rows["mean"] + half, color=colour, alpha=0.18, linewidth=0)
        if "last" in rows and not np.isnan(rows["last"].to_numpy(float)).all():
            axes.plot(rows[over], rows["last"], "--", color=colour, linewidth=0.9)


def _finish(axes: Axes, word: str) -> None:
    axes.set(title=word, ylabel="per cent", ylim=(0, 105))
    axes.spines[["top", "right"]].set_visible(False)


def _label(name: str, joint: str = "\n") -> str:
    return name.replace("_token_acc", "").replace("_", joint)
