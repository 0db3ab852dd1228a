"""A figure as a whole: its panels, headline and caption, its file. Made without pyplot, so nothing outlives a call."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tracer.errors import FileFormatError
from tracer.plot.style import PANELS_A_ROW, SPECIAL, STYLE, SUFFIXES
from tracer.storage import atomic_path


class NotebookFigure(Figure):
    """A matplotlib figure that notebooks show although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


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


def panels_for(
    names: Sequence[str], labels: Sequence[str], *, n_layers: int, row_height: float = 0.22
) -> tuple[Figure, list[Axes]]:
    """A figure sized for its labels and layers, with one panel for each name, at most three in a row, rows alike."""
    across = _across(len(names))
    down = -(-len(names) // across)
    width = across * float(np.clip(0.1 * n_layers + 1.6, 3.5, 5.0)) + 0.075 * max(map(len, labels))
    height = down * (max(row_height * len(labels), 1.6) + 1.0) + 0.7
    spacing = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03)
    figure = NotebookFigure(figsize=(width, height), layout=spacing)
    grid = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for unused in grid[len(names) :]:
        unused.remove()
    return figure, list(grid[: len(names)])


def _across(n_panels: int) -> int:
    """Panels in a row, so that rows are alike: four stand two by two."""
    return -(-n_panels // -(-n_panels // PANELS_A_ROW))


def headline(figure: Figure, title: str, caption: str) -> None:
    """Title above and caption below, both broken to the figure's width."""
    width = figure.get_figwidth()
    figure.suptitle(_balanced(title, int(10 * width)), fontweight="bold")
    figure.supxlabel(_balanced(caption, int(13 * width)), fontsize=8.5, color="#444444")


def panel_title(axes: Axes, text: str) -> None:
    """The title, in as many lines as a panel needs."""
    axes.set_title(_balanced(text, 46))


def layer_ticks(axes: Axes, n_layers: int, *, encoder: int = 0) -> None:
    """At most ten layers are numbered, from 0; of an encoder and its decoder each by itself, a line between them."""
    step = next((step for step in (1, 2, 5, 10) if n_layers <= 10 * step), 20)
    axes.set_xticks(range(0, n_layers, step))
    if encoder:
        stacks = [("E", layer, layer) for layer in range(0, encoder, step)]
        stacks += [("D", layer, encoder + layer) for layer in range(0, n_layers - encoder, step)]
        axes.set_xticks([at for *_, at in stacks], [f"{stack}{layer}" for stack, layer, _ in stacks])
        axes.axvline(encoder - 0.5, color="black", linewidth=0.8)
    axes.tick_params(labelsize=8, width=0.6, length=2.5)


def label_rows(panels: Sequence[Axes], labels: Sequence[str], grey: Sequence[int] = ()) -> None:
    """Labels at the first panel of each row; the others share them."""
    for axes in panels:
        axes.tick_params(axis="y", length=0, labelsize=8.5)
    for axes in panels[:: _across(len(panels))]:
        axes.set_yticks(range(len(labels)), labels)
        for row in grey:
            axes.get_yticklabels()[row].set_color(SPECIAL)


def colour_bar(axes: Axes, mesh: QuadMesh, meaning: str, *, ticks: int = 4) -> None:
    """So many ticks; the first is where the colours begin."""
    low, high = mesh.get_clim()
    places = np.linspace(low, high, ticks)
    bar = axes.figure.colorbar(mesh, ax=axes, aspect=22, pad=0.02, label=meaning)
    bar.set_ticks(places.tolist(), labels=[f"{place:.2g}" for place in places])
    bar.ax.tick_params(labelsize=7.5, width=0.6, length=2.5)
    bar.outline.set_linewidth(0.4)


def _balanced(text: str, width: int) -> str:
    """The text in as few lines as fit, none much shorter than the others."""
    lines = textwrap.wrap(text, width)
    while len(shorter := textwrap.wrap(text, width - 1)) == len(lines) and width > 20:
        lines, width = shorter, width - 1
    return "\n".join(lines)
