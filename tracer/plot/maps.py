"""Heatmaps of traces: one fact (Meng et al. 2022, fig. 1) and an average (fig. 2).

Colour is what the paper shows: p(answer) with a site restored, starting at the corrupted probability,
for one fact; the average indirect effect, starting at 0, for many. White is "no effect".
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tracer.effect import AverageTrace, Settings, TraceResult
from tracer.errors import FactError
from tracer.fact import ROLES
from tracer.plot.canvas import colour_bar, headline, label_rows, layer_ticks, panel_title, panels_for
from tracer.plot.labels import (
    action,
    average_caption,
    chosen_maps,
    count_facts,
    layer_label,
    layer_words,
    map_family,
    map_title,
    map_words,
    scale_end,
    shown_average,
    shown_values,
    token_labels,
    trace_caption,
    traced_roles,
    with_interval,
)
from tracer.plot.style import COLOURS, NOT_TRACED, STYLE
from tracer.site import SEVERABLE


def plot_trace(result: TraceResult, *, kind: str | None = None) -> Figure:
    """One fact: tokens down, layers across, p(answer) when restored (or the effect) as colour, a panel for each map.

    The subject's tokens are starred and special tokens grey. Every colour bar starts at the
    corrupted probability; severed maps share the scale of the state. Grey cells were not traced.

    Args:
        result: from `tracer.trace`.
        kind: draw this map only, e.g. "mlp" or "state | mlp severed".

    Raises:
        SiteError: the result has no such map.
    """
    names, labels = chosen_maps(result.restored, kind), token_labels(result)
    values, low, meaning = shown_values(result)
    with matplotlib.rc_context(STYLE):
        figure, panels = panels_for(names, labels, n_layers=values[names[0]].shape[1])
        for axes, name in zip(panels, names, strict=True):
            panel_title(axes, f"Impact of {map_title(result, name)}")
            mesh = _heatmap(axes, values[name], name, result.settings, low=low, high=scale_end(values, name))
            if result.fact.n_encoder:
                axes.axhline(result.fact.n_encoder - 0.5, color="black", linewidth=0.8)
            colour_bar(axes, mesh, meaning)
        label_rows(panels, labels, grey=result.fact.special)
        headline(figure, f"{result.fact.text} → {result.answer.strip()}", trace_caption(result))
    return figure


def plot_average(average: AverageTrace, *, kind: str | None = None) -> Figure:
    """Many facts: roles down, layers across, the average indirect effect as colour, the peak outlined.

    Roles that no fact has are left out.

    Args:
        average: from `tracer.average`.
        kind: draw this map only.

    Raises:
        SiteError: the average has no such map.
    """
    if not isinstance(average, AverageTrace):
        raise FactError(f"A {type(average).__name__} is no average. Of a study write plot_average(study.average).")
    names, (aie, meaning) = chosen_maps(average.effects, kind), shown_average(average)
    rows = traced_roles(average)
    labels = [ROLES[row] for row in rows]
    with matplotlib.rc_context(STYLE):
        figure, panels = panels_for(names, labels, n_layers=aie[names[0]].shape[1], row_height=0.3)
        for axes, name in zip(panels, names, strict=True):
            panel_title(
                axes, f"Average effect of {action(average.settings)} {map_words(name, average.settings.window)}"
            )
            mesh = _heatmap(axes, aie[name][rows], name, average.settings, low=0.0, high=scale_end(aie, name))
            colour_bar(axes, mesh, meaning)
            _mark_peak(axes, average, name, labels)
        label_rows(panels, labels)
        headline(figure, f"Average indirect effects over {count_facts(average.n)}", average_caption(average))
    return figure


def _heatmap(axes: Axes, values: np.ndarray, name: str, settings: Settings, *, low: float, high: float) -> QuadMesh:
    """Rows from the top down, layers from the left; cells without a value stay the panel's grey."""
    edges = [np.arange(n + 1) - 0.5 for n in reversed(values.shape)]
    mesh = axes.pcolormesh(
        *edges,
        np.ma.masked_invalid(values),
        cmap=COLOURS[map_family(name)],
        vmin=low,
        vmax=max(high, low + 1e-6),
        edgecolors="white",
        linewidth=0.25,
    )
    axes.set_facecolor(NOT_TRACED)
    axes.set_ylim(len(values) - 0.5, -0.5)
    words = "layer at the centre of the interval" if name in SEVERABLE else "layer"
    axes.set_xlabel(layer_words(settings, words))
    layer_ticks(axes, values.shape[1], encoder=settings.encoder_layers)
    return mesh


def _mark_peak(axes: Axes, average: AverageTrace, name: str, labels: Sequence[str]) -> None:
    role, layer, estimate = average.peak(name)
    corner = (layer - 0.5, labels.index(role) - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.2, zorder=3))
    said = f"layer {layer_label(layer, average.settings)}, {with_interval(estimate, average.settings.sense)}"
    axes.set_xlabel(f"{axes.get_xlabel()}\n□ peak: {said}")
