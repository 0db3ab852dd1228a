"""Figures of traces: one fact (Meng et al. 2022, fig. 1), an average (fig. 2), severed paths (fig. 3).

Colour is what the paper shows: p(answer) with a site restored, starting at the corrupted probability,
for one fact; the average indirect effect, starting at 0, for many. White is "no effect".
Figures are made without pyplot, so no theme, window or global setting outlives a call.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from tracer.effect import AverageTrace, TraceResult
from tracer.errors import FileFormatError, SiteError
from tracer.fact import ROLES, check_roles
from tracer.labels import (
    average_caption,
    chosen_maps,
    count_facts,
    map_family,
    map_title,
    map_words,
    prompt_text,
    scale_end,
    shown_values,
    token_labels,
    trace_caption,
    traced_roles,
    with_interval,
)
from tracer.site import SEVERABLE, severed_name
from tracer.storage import atomic_path

COLOURS = {"state": "Purples", "mlp": "Greens", "attn": "Reds"}
BAR_COLOURS = {"state": "#6a51a3", severed_name("mlp"): "#41ab5d", severed_name("attn"): "#ef6548"}
SEVERED_WORDS = {
    "state": "state restored",
    severed_name("mlp"): "state restored, MLP severed",
    severed_name("attn"): "state restored, attention severed",
}
ROLE_COLOURS = ("#9ecae1", "#4292c6", "#08306b", "#fdae6b", "#bdbdbd", "#a63603")
NOT_TRACED = "#e3e3e3"
SPECIAL = "#9a9a9a"
SUFFIXES = (".png", ".pdf", ".svg")
PANELS_A_ROW = 3
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "figure.titlesize": 11.0,
    "text.parse_math": False,  # a token may hold dollar signs
    "pdf.fonttype": 42,
}


class NotebookFigure(Figure):
    """A matplotlib figure that notebooks show although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


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
        figure, panels = _panels(names, labels, n_layers=values[names[0]].shape[1])
        for axes, name in zip(panels, names, strict=True):
            _title(axes, f"Impact of {map_title(result, name)}")
            mesh = _heatmap(axes, values[name], name, low=low, high=scale_end(values, name))
            _colour_bar(axes, mesh, meaning)
        _label_rows(panels, labels, grey=result.fact.special)
        _headline(figure, f"{prompt_text(result)} → {result.answer.strip()}", trace_caption(result))
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
    names, aie = chosen_maps(average.effects, kind), average.indirect_effect
    rows = traced_roles(average)
    labels = [ROLES[row] for row in rows]
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(names, labels, n_layers=aie[names[0]].shape[1], row_height=0.3)
        for axes, name in zip(panels, names, strict=True):
            _title(axes, f"Average effect of restoring {map_words(name, average.settings.window)}")
            mesh = _heatmap(axes, aie[name][rows], name, low=0.0, high=scale_end(aie, name))
            _colour_bar(axes, mesh, "average indirect effect")
            _mark_peak(axes, average, name, labels)
        _label_rows(panels, labels)
        _headline(figure, f"Average indirect effects over {count_facts(average.n)}", average_caption(average))
    return figure


def plot_severed(average: AverageTrace, *, role: str = "last subject token") -> Figure:
    """AIE of restoring the state, by layer, whole and with MLP or attention severed; 95 % intervals.

    Where a severed bar falls short of the whole one, the state acts through the severed sub-layers.

    Args:
        average: from `tracer.average(..., severed=("mlp", "attn"))`.
        role: of the token whose state is restored.

    Raises:
        SiteError: the average has no "state", no severed map, or no fact with this role.
        FactError: there is no such role.
    """
    check_roles([role])
    names = [name for name in SEVERED_WORDS if name in average.effects]
    if "state" not in names or len(names) < 2:
        raise SiteError(
            f'A severed plot needs "state" and a severed map; this average has {", ".join(average.effects)}. '
            f'Write tracer.average(model, facts, kinds=("state",), severed=("mlp", "attn")).'
        )
    average.peak("state", role)  # raises for a role that no fact has
    n_layers = average.effects["state"].shape[2]
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(float(np.clip(0.3 * n_layers + 1.5, 6.5, 14)), 3.6), layout="constrained")
        axes = figure.subplots()
        for n, name in enumerate(names):
            _bars(axes, average, name, ROLES.index(role), place=n, places=len(names))
        axes.set(ylabel="average indirect effect", xlim=(-0.7, n_layers - 0.3))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names), frameon=False)
        _finish_lines(axes, n_layers)
        caption = f"{average_caption(average)} Error bars: 95 %."
        _headline(figure, f"Restoring the {role} with modules severed", caption)
    return figure


def plot_lines(average: AverageTrace, *, kinds: Sequence[str] | None = None) -> Figure:
    """AIE against layer, a line for each role with its 95 % band, a panel for each map.

    Args:
        average: from `tracer.average`.
        kinds: draw these maps only.

    Raises:
        SiteError: the average has no such map.
    """
    names = [name for kind in kinds or (None,) for name in chosen_maps(average.effects, kind)]
    n_layers = average.effects[names[0]].shape[2]
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(names, ROLES, n_layers=n_layers, row_height=0.36)
        for axes, name in zip(panels, names, strict=True):
            for row in traced_roles(average):
                _line(axes, average, name, row)
            _title(axes, f"Restoring {map_words(name, average.settings.window)}")
            axes.margins(x=0.01)
            _finish_lines(axes, n_layers)
        panels[0].set_ylabel("average indirect effect")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        _headline(figure, f"Average indirect effects over {count_facts(average.n)}", average_caption(average))
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes the figure as PNG, PDF or SVG by the path's suffix, whole or not at all; makes its folder.

    Raises:
        FileFormatError: another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise FileFormatError(f"A figure cannot be saved as {path.name!r}. End its name in {', '.join(SUFFIXES)}.")
    with matplotlib.rc_context(STYLE), atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=200, format=path.suffix[1:].lower())
    return path


def _panels(
    names: Sequence[str], labels: Sequence[str], *, n_layers: int, row_height: float = 0.22
) -> tuple[Figure, list[Axes]]:
    """A figure sized for its labels and layers, with one panel for each name, at most three in a row."""
    across = min(len(names), PANELS_A_ROW)
    down = -(-len(names) // across)
    width = across * float(np.clip(0.1 * n_layers + 1.6, 3.5, 5.0)) + 0.075 * max(map(len, labels))
    height = down * (max(row_height * len(labels), 1.6) + 1.0) + 0.7
    spacing = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03)
    figure = NotebookFigure(figsize=(width, height), layout=spacing)
    grid = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for unused in grid[len(names) :]:
        unused.remove()
    return figure, list(grid[: len(names)])


def _heatmap(axes: Axes, values: np.ndarray, name: str, *, low: float, high: float) -> QuadMesh:
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
    axes.set_xlabel("layer" if name not in SEVERABLE else "layer at the centre of the interval")
    _layer_ticks(axes, values.shape[1])
    return mesh


def _layer_ticks(axes: Axes, n_layers: int) -> None:
    step = next((step for step in (1, 2, 5, 10) if n_layers <= 10 * step), 20)
    axes.set_xticks(range(0, n_layers, step))
    axes.tick_params(labelsize=8, width=0.6, length=2.5)


def _label_rows(panels: Sequence[Axes], labels: Sequence[str], grey: Sequence[int] = ()) -> None:
    """Labels at the first panel of each row; the others share them."""
    for axes in panels:
        axes.tick_params(axis="y", length=0, labelsize=8.5)
    for axes in panels[::PANELS_A_ROW]:
        axes.set_yticks(range(len(labels)), labels)
        for row in grey:
            axes.get_yticklabels()[row].set_color(SPECIAL)


def _colour_bar(axes: Axes, mesh: QuadMesh, meaning: str) -> None:
    """Four ticks; the first is where the colours begin."""
    low, high = mesh.get_clim()
    ticks = np.linspace(low, high, 4)
    bar = axes.figure.colorbar(mesh, ax=axes, aspect=22, pad=0.02, label=meaning)
    bar.set_ticks(ticks.tolist(), labels=[f"{tick:.2g}" for tick in ticks])
    bar.ax.tick_params(labelsize=7.5, width=0.6, length=2.5)
    bar.outline.set_linewidth(0.4)


def _mark_peak(axes: Axes, average: AverageTrace, name: str, labels: Sequence[str]) -> None:
    role, layer, estimate = average.peak(name)
    corner = (layer - 0.5, labels.index(role) - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.2, zorder=3))
    axes.set_xlabel(f"{axes.get_xlabel()}\n□ peak: layer {layer}, {with_interval(estimate)}")


def _bars(axes: Axes, average: AverageTrace, name: str, row: int, *, place: int, places: int) -> None:
    """AIE of one role by layer with its 95 % intervals: bar `place` of the `places` side by side at a layer."""
    heights, errors = average.indirect_effect[name][row], 1.96 * average.standard_error[name][row]
    width = 0.84 / places
    middle = np.arange(len(heights)) + (place - (places - 1) / 2) * width
    axes.bar(middle, heights, width, label=SEVERED_WORDS[name], color=BAR_COLOURS[name])
    axes.errorbar(middle, heights, errors, fmt="none", ecolor="#333333", elinewidth=0.7, capsize=1.3)


def _line(axes: Axes, average: AverageTrace, name: str, row: int) -> None:
    aie, errors = average.indirect_effect[name][row], 1.96 * average.standard_error[name][row]
    axes.plot(aie, color=ROLE_COLOURS[row], linewidth=1.4, label=ROLES[row])
    band = {"y1": aie - errors, "y2": aie + errors}
    axes.fill_between(range(len(aie)), **band, color=ROLE_COLOURS[row], alpha=0.18, linewidth=0)


def _finish_lines(axes: Axes, n_layers: int) -> None:
    axes.axhline(0, color="black", linewidth=0.6)
    _layer_ticks(axes, n_layers)
    axes.set_xlabel("layer")
    axes.spines[["top", "right"]].set_visible(False)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(_balanced(text, 46))


def _balanced(text: str, width: int) -> str:
    """The text in as few lines as fit, none much shorter than the others."""
    lines = textwrap.wrap(text, width)
    while len(shorter := textwrap.wrap(text, width - 1)) == len(lines) and width > 20:
        lines, width = shorter, width - 1
    return "\n".join(lines)


def _headline(figure: Figure, title: str, caption: str) -> None:
    """Title above and caption below, both broken to the figure's width."""
    width = figure.get_figwidth()
    figure.suptitle(_balanced(title, int(10 * width)), fontweight="bold")
    figure.supxlabel(_balanced(caption, int(13 * width)), fontsize=8.5, color="#444444")
