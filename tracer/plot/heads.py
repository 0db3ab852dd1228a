"""The effect of every attention head alone: heads down, layers across."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tracer.plot.canvas import colour_bar, headline, label_rows, layer_ticks, panel_title, panels_for
from tracer.plot.figure_data import head_grids
from tracer.plot.labels import action, effect_words
from tracer.plot.style import NOT_TRACED, STYLE, TWO_SIDED
from tracer.unit_trace import UnitTrace


def plot_heads(trace: UnitTrace, *, role: str | None = None, token: int | None = None) -> Figure:
    """One fact: what each head alone brings back, a panel for each role that was traced; the largest is outlined.

    Purple brings the answer back, orange takes it away, on one scale with its middle at 0.

    Args:
        trace: from `tracer.trace_heads`.
        role: show the mean over the tokens of this role only.
        token: show this token only.

    Raises:
        SiteError: a trace of neurons, or a role or token that was not traced.
    """
    grids = head_grids(trace, role=role, token=token)
    most = float(np.nanmax([np.nanmax(np.abs(grid)) for grid in grids.values()]))
    n_layers, n_heads = next(iter(grids.values())).shape
    labels = [str(head) for head in range(n_heads)]
    with matplotlib.rc_context(STYLE):
        figure, panels = panels_for(list(grids), labels, n_layers=n_layers)
        for axes, (title, grid) in zip(panels, grids.items(), strict=True):
            panel_title(axes, title)
            mesh = _grid(axes, grid.T, most)
            _mark_largest(axes, grid)
        colour_bar(panels[-1], mesh, effect_words(trace.settings), ticks=5)
        label_rows(panels, labels)
        panels[0].set_ylabel("head")
        caption = f"{action(trace.settings).capitalize()} one head at a time. {trace.settings.model}, "
        headline(
            figure,
            f"{trace.fact.text} → {trace.answer.strip()}",
            f"{caption}{trace.settings.samples} noise samples.",
        )
    return figure


def _grid(axes: Axes, values: np.ndarray, most: float) -> QuadMesh:
    edges: Sequence[np.ndarray] = [np.arange(n + 1) - 0.5 for n in reversed(values.shape)]
    most = max(most, 1e-6)
    mesh = axes.pcolormesh(
        *edges,
        np.ma.masked_invalid(values),
        cmap=TWO_SIDED,
        vmin=-most,
        vmax=most,
        edgecolors="white",
        linewidth=0.25,
    )
    axes.set_facecolor(NOT_TRACED)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlabel("layer")
    layer_ticks(axes, values.shape[1])
    return mesh


def _mark_largest(axes: Axes, grid: np.ndarray) -> None:
    """Outlines the head with the largest effect by size in `grid` [layer, head]."""
    layer, head = np.unravel_index(np.nanargmax(np.abs(grid)), grid.shape)
    corner = (float(layer) - 0.5, float(head) - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.2, zorder=3))
    axes.set_xlabel(f"layer\n□ largest: layer {layer}, head {head}, {grid[layer, head]:+.2g}")
