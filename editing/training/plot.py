"""Figure of a training: its losses by step, and the shares of what is held out that it does right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from editing.training.result import TrainingResult
from tracer.plot import STYLE, NotebookFigure

LOSSES = {
    "edit_loss": "edit loss (nats a token, other words)",
    "drift": "drift (nats a token, other prompts)",
    "inside_loss": "-log s, prompts in scope",
    "outside_loss": "-log(1 - s), prompts outside",
}
SHARES = {
    "edits_taken": "edited prompt",
    "others_taken": "other words",
    "inside": "let in",
    "outside": "kept out",
}
ABOUT = {"edits_taken": "held-out edits that take, %", "inside": "held-out prompts decided rightly, %"}
LOWEST = 1e-2  # of a drift's median: its axis ends there, for a network that has not learned yet drifts by nothing
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 2, "frameon": False}  # where no data are
LOSS_COLOURS, SHARE_COLOURS = ("#0072b2", "#d55e00"), ("#0072b2", "#e69f00")
MARKS: Sequence[dict[str, Any]] = (
    {"fmt": "o-"},
    {"fmt": "s--", "markerfacecolor": "white"},
)  # two shares may be the same


def plot_training(result: TrainingResult) -> Figure:
    """Left and middle: losses of each step (thin) and held out (dots). Right: shares of what is held out.

    A vertical line marks what was kept. A drift far below the usual one leaves its axis. Bars are 95 % intervals of a
    share.
    """
    checks = [record for record in result.curve if record.get("validation")]
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(10.0, 3.3), layout="constrained")
        axes = figure.subplots(1, 3)
        losses = [name for name in LOSSES if name in result.best]
        for each, name, colour in zip(axes, losses, LOSS_COLOURS, strict=False):
            _loss(each, name, colour, result.curve)
        _shares(axes[2], [name for name in SHARES if name in result.best], checks)
        for each in axes:
            each.axvline(result.best["step"], color="#999999", linewidth=0.8, linestyle=":")
            each.set(xlabel="step", xlim=(0, 1.03 * result.steps))
            each.spines[["top", "right"]].set_visible(False)
    return figure


def _loss(axes: Axes, name: str, colour: str, curve: Sequence[Mapping[str, Any]]) -> None:
    steps, checks = ([record for record in curve if bool(record.get("validation")) == held] for held in (False, True))
    thin, dots = {"linewidth": 0.6, "alpha": 0.45, "label": "each step"}, {"markersize": 4, "label": "held out"}
    each, held = _column(steps, name), _column(checks, name)
    axes.plot(_column(steps, "step"), each, color=colour, **thin)
    axes.plot(_column(checks, "step"), held, "o-", color=colour, linewidth=1.4, **dots)
    axes.set_title(LOSSES[name], loc="left", fontsize=10)
    axes.set_yscale("log")
    if name == "drift":
        axes.set_ylim(bottom=max(axes.get_ylim()[0], min(LOWEST * np.nanmedian(each), 0.8 * np.nanmin(held))))
    for of_axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        of_axis(_Plain(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axes.legend(**BELOW)


def _shares(axes: Axes, names: Sequence[str], checks: Sequence[Mapping[str, Any]]) -> None:
    for name, colour, mark in zip(names, SHARE_COLOURS, MARKS, strict=True):
        share = _column(checks, name)
        n = _column(checks, "n" if "n" in checks[0] else f"n_{name}")
        middle, half = _wilson(share, n)
        spread = 100 * np.stack([share - (middle - half), middle + half - share]).clip(0)
        axes.errorbar(_column(checks, "step"), 100 * share, spread, color=colour, label=SHARES[name], ms=4, **mark)
    axes.set_ylim(-3, 103)
    axes.set_title(ABOUT[names[0]], loc="left", fontsize=10)
    axes.legend(**BELOW)


def _wilson(share: np.ndarray, n: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Middle and half width of Wilson's 95 % interval of a share, which also 0 and 1 have."""
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle / (1 + z**2 / n), half / (1 + z**2 / n)


class _Plain(LogFormatter):
    """0.02, where matplotlib would write 2e-02."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _column(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """The values of one name; a step without a finite loss leaves a gap."""
    return np.array([np.nan if record[name] is None else record[name] for record in records], dtype=float)
