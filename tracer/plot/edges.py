"""The strongest edges between heads and MLPs: layers across, heads down, the MLPs below them."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from tracer.first_order.edge_scores import EdgeScores, Input, Node
from tracer.plot.canvas import NotebookFigure, headline, layer_ticks
from tracer.plot.style import STYLE

GAINED, LOST, FAINT = "#542788", "#e08214", "#d9d9d9"
LINES = {"q": "--", "k": ":", "v": "-", "mlp": "-", "logits": "-"}
BENDS = {"q": 0.28, "k": 0.08, "v": 0.18, "mlp": 0.3, "logits": 0.12}
WIDEST = 4.5  # points
BESIDE = 0.2  # of a layer, from its middle to its heads and to its MLP


def plot_edges(found: EdgeScores, *, most: int = 30) -> Figure:
    """The `most` edges with the largest scores, as wide as these are; purple brings the answer back, orange takes it.

    Circles are heads, squares MLPs. Queries are read along dashed lines, keys along dotted ones, all
    else along whole ones. With grouped-query attention a key head's edge ends amid the heads it serves.

    Args:
        found: from `tracer.attribute_edges`.
        most: how many edges.

    Raises:
        SiteError: fewer than one edge.
    """
    edges = found.top(most)
    grid = _Grid.of(found)
    largest = max((abs(score) for _, score in edges), default=0.0) or 1.0
    with matplotlib.rc_context(STYLE):
        width = float(np.clip(0.26 * grid.n_layers + 1.6, 5.0, 10.0))
        figure = NotebookFigure(figsize=(width, 0.27 * grid.n_heads + 2.3), layout="constrained")
        axes = figure.add_subplot()
        _places(axes, grid)
        for edge, score in reversed(edges):  # the strongest on top
            _arrow(axes, grid.at(edge.source), grid.at(edge.target), edge.target.kind, score / largest)
        for node in {end for edge, _ in edges for end in (edge.source, edge.target)}:
            _node(axes, grid.at(node), node)
        _legend(axes)
        share = f"{found.corrupted:.3g} corrupted, {found.clean:.3g} clean"
        caption = (
            f"Width: size of the score, at most {largest:.3g}. The answer's {found.metric}: {share}. "
            f"{found.settings.model}, {found.settings.engine} of {found.steps} steps, "
            f"{found.settings.samples} noise samples."
        )
        about = f": {found.prompt}" if found.prompt else ""
        headline(figure, f"The {len(edges)} strongest edges{about}", caption)
    return figure


@dataclass(frozen=True)
class _Grid:
    """Where nodes and inputs stand: (layer, row), rows from the top down."""

    n_layers: int
    n_heads: int
    n_key_heads: int

    @classmethod
    def of(cls, found: EdgeScores) -> _Grid:
        n_layers = max(target.layer for target in found.targets)  # the logits stand above the last layer
        heads = 1 + max(node.head for node in found.sources)
        return cls(n_layers, heads, 1 + max((one.head for one in found.targets if one.kind == "k"), default=0))

    def at(self, place: Node | Input) -> tuple[float, float]:
        if place.kind in ("embedding", "logits"):
            return (-1.2 if place.kind == "embedding" else self.n_layers + 0.2), (self.n_heads - 1) / 2
        if place.kind == "mlp":
            return place.layer + BESIDE, self.mlp_row
        served = self.n_heads / self.n_key_heads if place.kind in ("k", "v") else 1.0
        return place.layer - BESIDE, (place.head + 0.5) * served - 0.5

    @property
    def mlp_row(self) -> float:
        return self.n_heads + 0.6


def _places(axes: Axes, grid: _Grid) -> None:
    """Every head and MLP faintly, and their names."""
    heads = [(layer - BESIDE, head) for layer in range(grid.n_layers) for head in range(grid.n_heads)]
    mlps = [(layer + BESIDE, grid.mlp_row) for layer in range(grid.n_layers)]
    for places, mark in ((heads, "o"), (mlps, "s")):
        axes.plot(*np.array(places).T, mark, color=FAINT, markersize=2.5, markeredgewidth=0, zorder=0)
    step = next(step for step in (1, 2, 4, 8, 16) if grid.n_heads <= 16 * step)
    rows = list(range(0, grid.n_heads, step))
    axes.set_yticks([*rows, grid.mlp_row], [*(f"head {row}" for row in rows), "MLP"])
    axes.set_xlim(-1.9, grid.n_layers + 0.9)
    axes.set_ylim(grid.mlp_row + 1.6, -1.1)
    layer_ticks(axes, grid.n_layers)
    axes.set_xlabel("layer")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _arrow(axes: Axes, begin: tuple[float, float], end: tuple[float, float], kind: str, score: float) -> None:
    """A curve for a score in [-1, 1], a share of the largest."""
    arrow = FancyArrowPatch(
        begin,
        end,
        connectionstyle=f"arc3,rad={BENDS[kind]}",
        arrowstyle="-",
        linewidth=0.5 + (WIDEST - 0.5) * abs(score),
        linestyle=LINES[kind],
        color=GAINED if score > 0 else LOST,
        alpha=0.8,
        shrinkA=3,
        shrinkB=3,
    )
    axes.add_patch(arrow)


def _node(axes: Axes, at: tuple[float, float], place: Node | Input) -> None:
    if place.kind in ("embedding", "logits"):
        axes.annotate(place.kind, at, ha="center", va="center", rotation=90, fontsize=8, zorder=4,
                      bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "#555555"})  # fmt: skip
        return
    mark = "s" if place.kind == "mlp" else "o"
    axes.plot(*at, mark, markersize=5.5, markerfacecolor="white", markeredgecolor="#222222", zorder=3)


def _legend(axes: Axes) -> None:
    shown = [
        Line2D([], [], color=GAINED, linewidth=2.5, label="brings the answer back"),
        Line2D([], [], color=LOST, linewidth=2.5, label="takes it away"),
        Line2D([], [], color="#555555", linestyle="--", label="read as query"),
        Line2D([], [], color="#555555", linestyle=":", label="as key"),
        Line2D([], [], color="#555555", label="as value, by MLP or logits"),
    ]
    axes.legend(handles=shown, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False, fontsize=7.5,
                handlelength=2.2, columnspacing=1.0, borderpad=0)  # fmt: skip
