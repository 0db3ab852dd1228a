"""Figure of a training: both losses by step, and how many held-out edits take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from editing.meta_learning.training import TrainingResult
from tracer.plot import STYLE, NotebookFigure

COLOURS = {"edit_loss": "#0072b2", "drift": "#d55e00", "edits_taken": "#0072b2", "others_taken": "#e69f00"}
WORDS = {
    "edit_loss": "edit loss (nats a token, other words)",
    "drift": "drift (nats a token, other prompts)",
    "edits_taken": "edited prompt",
    "others_taken": "other words",
}


def plot_training(result: TrainingResult) -> Figure:
    """Left and middle: losses of each step (thin) and held out (dots). Right: the share of held-out edits that take.

    A vertical line marks the network that was kept. Bars are 95 % intervals of a share.
    """
    steps = [record for record in result.curve if not record.get("validation")]
    checks = [record for record in result.curve if record.get("validation")]
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(10.0, 3.1), layout="constrained")
        axes = figure.subplots(1, 3)
        for each, name in zip(axes, ("edit_loss", "drift"), strict=False):
            _loss(each, name, steps, checks)
        _taken(axes[2], checks)
        for each in axes:
            each.axvline(result.best["step"], color="#999999", linewidth=0.8, linestyle=":")
            each.set(xlabel="step", xlim=(0, 1.03 * result.steps))
            each.spines[["top", "right"]].set_visible(False)
    return figure


def _loss(axes: Axes, name: str, steps: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]) -> None:
    axes.plot(_column(steps, "step"), _column(steps, name), color=COLOURS[name], linewidth=0.6, alpha=0.45)
    axes.plot(_column(checks, "step"), _column(checks, name), "o-", color=COLOURS[name], markersize=4, linewidth=1.4)
    axes.set_title(WORDS[name], loc="left", fontsize=10)
    axes.set_yscale("log")
    for of_axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):  # 0.02, not a formula
        of_axis(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))


def _taken(axes: Axes, checks: Sequence[Mapping[str, Any]]) -> None:
    for name in ("edits_taken", "others_taken"):
        share, n = _column(checks, name), _column(checks, "n")
        spread = 1.96 * np.sqrt(share * (1 - share) / n)
        axes.errorbar(_column(checks, "step"), share, spread, fmt="o-", color=COLOURS[name], label=WORDS[name], ms=4)
    axes.set_ylim(-0.03, 1.03)
    axes.set_title("share of held-out edits that take", loc="left", fontsize=10)
    axes.legend(frameon=False)


def _column(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """The values of one name; a step without a finite loss leaves a gap."""
    return np.array([np.nan if record[name] is None else record[name] for record in records], dtype=float)
