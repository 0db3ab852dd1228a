"""Figure of a layer check: AIE and edit scores by layer, and one against the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from editing.evaluation.counterfact import MAGNITUDES, SCORES
from tracer.plot import STYLE, NotebookFigure, headline, layer_ticks

if TYPE_CHECKING:
    from editing.layer_check.check import LayerCheck

AIE_COLOUR = "#238b45"
MARKS = {"ES": ("#0072b2", "o"), "PS": ("#e69f00", "s"), "NS": ("#aa4499", "^")}
WORDS = {"ES": "edited (ES)", "PS": "paraphrases (PS)", "NS": "neighbours (NS)"}
MARGINS = {
    "efficacy_magnitude": "p(new) - p(old), edited prompt",
    "paraphrase_magnitude": "p(new) - p(old), paraphrases",
    "neighborhood_magnitude": "p(old) - p(new), neighbours",
}


def plot_check(check: LayerCheck) -> Figure:
    """Above: AIE of every layer, and the scores of edits at some; below: margins of probability, layers by their AIE.

    Success saturates where nearly every edit takes; the margins still differ. Points below bear the
    number of their layer and rise from left to right where an edit does better the larger AIE is. All
    intervals are 95 %, over facts.
    """
    scores = [name for name in SCORES if name in check.scores]
    margins = [name for name in MAGNITUDES if name in check.scores]
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(7.0, 5.4), layout="constrained")
        halves = figure.add_gridspec(2, 1, height_ratios=(1.08, 1))
        above, below = (figure.add_subfigure(halves[row]) for row in (0, 1))
        left, right = above.subplots(1, 2)
        _effects(left, check)
        _scores(right, check, scores)
        for axes, name in zip(np.ravel(below.subplots(1, len(margins), squeeze=False)), margins, strict=True):
            _against(axes, check, name)
        located = f"Located: {check.place.kind}, layer {check.place.layer}, {check.place.role}"
        n = len(check.cases[check.layers[0]])
        facts = f"AIE: {check.place.estimate.n} facts, window {check.window}; edits: {n} facts at each of "
        caption = f"{facts}{len(check.layers)} layers. ρ: Spearman's rank correlation over those layers."
        headline(figure, f"Does the edit work best where tracing says? {located}", caption)
    return figure


def _effects(axes: Axes, check: LayerCheck) -> None:
    ranking = sorted(check.place.ranking, key=lambda row: row.layer)
    layers, sense = [row.layer for row in ranking], check.place.sense
    low, high = (sense * np.array([getattr(row, end) for row in ranking]) for end in ("low", "high"))
    axes.fill_between(layers, low, high, color=AIE_COLOUR, alpha=0.18, linewidth=0)
    axes.plot(layers, [sense * row.effect for row in ranking], color=AIE_COLOUR, linewidth=1.4)
    means = [estimate.mean for estimate in check.effects]
    axes.plot(check.layers, means, "o", color=AIE_COLOUR, markersize=4)
    axes.axvline(check.place.layer, color="#888888", linewidth=0.8, linestyle=":")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel="layer traced", ylabel="average indirect effect (AIE)")
    layer_ticks(axes, len(layers))
    _finish(axes)


def _scores(axes: Axes, check: LayerCheck, scores: list[str]) -> None:
    """A line a score with its intervals, its value before the edit as a short mark at the right."""
    spread = 0.12
    for n, name in enumerate(scores):
        colour, mark = MARKS[name]
        estimates = check.estimates(name)
        at = np.array(check.layers) + spread * (n - 1)
        means = np.array([100 * estimate.mean for estimate in estimates])
        errors = np.nan_to_num([196 * estimate.standard_error for estimate in estimates])
        bounds = [np.minimum(errors, means), np.minimum(errors, 100 - means)]  # a share stays one
        axes.errorbar(at, means, bounds, color=colour, marker=mark, markersize=4, linewidth=1.2,
                      elinewidth=0.7, label=WORDS[name])  # fmt: skip
        axes.plot(1.02, 100 * check.before(name).mean, mark, markersize=4, markerfacecolor="white",
                  markeredgecolor=colour, transform=axes.get_yaxis_transform(), clip_on=False)  # fmt: skip
    axes.axvline(check.place.layer, color="#888888", linewidth=0.8, linestyle=":")
    axes.set(xlabel="layer edited (right, open: before)", ylabel="% of prompts", ylim=(-4, 104))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=7,
                handlelength=1.4, columnspacing=0.9, borderpad=0)  # fmt: skip
    layer_ticks(axes, 1 + max(check.layers))
    _finish(axes)


def _against(axes: Axes, check: LayerCheck, name: str) -> None:
    places = np.argsort(np.argsort([estimate.mean for estimate in check.effects], kind="stable")) + 1
    means = [estimate.mean for estimate in check.estimates(name)]
    axes.scatter(places, means, s=110, facecolor="#f0f0f0", edgecolor="#999999", linewidth=0.6)
    for x, y, layer in zip(places, means, check.layers, strict=True):
        axes.text(x, y, str(layer), ha="center", va="center_baseline", fontsize=7)
    correlation = check.correlations[name]
    told = "no correlation: all alike" if np.isnan(correlation) else f"ρ = {correlation:+.2f}, n = {len(means)} layers"
    axes.set(title=told, xlabel="layers, least AIE to most", xticks=[], ylabel=MARGINS[name])
    axes.margins(0.12)
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, width=0.6, length=2.5)
