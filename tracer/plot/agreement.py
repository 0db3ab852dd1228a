"""A first-order map against the exact one: a point for each site."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tracer.effect import TraceResult
from tracer.plot.canvas import NotebookFigure, headline
from tracer.plot.figure_data import agreement, tokens_by_role
from tracer.plot.labels import chosen_maps, map_words
from tracer.plot.style import ROLE_COLOURS, ROLE_MARKS, STYLE

DECADES = 4  # shown on either side of 0


def plot_agreement(estimate: TraceResult, exact: TraceResult, *, kind: str | None = None) -> Figure:
    """Estimated effects over exact ones, a panel for each map, coloured by the token's role; the line is equality.

    Sites before the subject, where both are 0, are left out. "graddrop" estimates sizes, so the exact
    effects' sizes stand below it.

    Args:
        estimate: from `tracer.attribute`.
        exact: from `tracer.trace`, of the same fact, window and draws.
        kind: draw this map only.

    Raises:
        FactError: traces of different facts or settings.
        SiteError: no such map.
    """
    names = chosen_maps({name: exact.restored[name] for name in estimate.restored if name in exact.restored}, kind)
    pairs = {name: agreement(estimate, exact, name) for name in names}
    sizes = "size of the exact effect" if estimate.settings.engine == "graddrop" else "exact effect"
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(2.6 * len(names) + 1.4, 3.5), layout="constrained")
        panels = list(np.ravel(figure.subplots(1, len(names), squeeze=False)))
        for axes, name in zip(panels, names, strict=True):
            found = pairs[name]
            _points(axes, exact, found.exact, found.estimate)
            axes.set_title(f"{_panel_words(name, exact.settings.window)}\nρ = {found.correlation:.2f}, n = {found.n}")
            axes.set_xlabel(sizes)
        panels[0].set_ylabel(f"first order ({estimate.settings.engine})")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, markerscale=1.8)
        about = f"{exact.settings.model}, {exact.settings.samples} noise samples."
        caption = f"Line: equality; both axes logarithmic but near 0. ρ: Spearman's, over n sites. {about}"
        headline(figure, f"{exact.fact.text} → {exact.answer.strip()}", caption)
    return figure


def _panel_words(name: str, window: int) -> str:
    words = map_words(name, window)
    return words if name == "state" or window > 1 else words.split(" for ")[0]


def _points(axes: Axes, exact: TraceResult, across: np.ndarray, up: np.ndarray) -> None:
    """`across` and `up` are [token, layer]; the tokens of a role share colour and mark."""
    for row, (role, tokens) in enumerate(tokens_by_role(exact).items()):
        if tokens:
            axes.plot(across[tokens].ravel(), up[tokens].ravel(), ROLE_MARKS[row], color=ROLE_COLOURS[row],
                      markersize=3.6, markeredgewidth=0, alpha=0.85, label=role)  # fmt: skip
    _both_logarithmic(axes, np.concatenate([across[~np.isnan(across)], up[~np.isnan(up)]]))
    axes.axline((0, 0), slope=None, xy2=(1, 1), color="#888888", linewidth=0.8, zorder=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7.5, width=0.6, length=2.5)


def _both_logarithmic(axes: Axes, values: np.ndarray) -> None:
    """One scale across and up: logarithmic on both sides of 0, even within a thousandth of the largest size."""
    largest = max(float(np.abs(values).max(initial=0)), 1e-9)
    powers = 10.0 ** (np.floor(np.log10(largest)) - np.arange(DECADES))
    low = -2 * largest if values.min(initial=0) < -powers[-1] else -powers[-1]
    ticks = [0.0, *powers[::2], *(-powers[::2] if low < -powers[-1] else ())]
    axes.set_xscale("symlog", linthresh=powers[-1])
    axes.set_yscale("symlog", linthresh=powers[-1])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        axis.set_minor_locator(NullLocator())
    axes.set(xlim=(low, 2 * largest), ylim=(low, 2 * largest), aspect="equal")
