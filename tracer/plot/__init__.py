"""Figures of traces, for print and under the pointer, each from a value that a computation returned."""

from tracer.plot.agreement import plot_agreement
from tracer.plot.canvas import NotebookFigure, headline, layer_ticks, save_figure
from tracer.plot.edges import plot_edges
from tracer.plot.heads import plot_heads
from tracer.plot.lines import plot_lines, plot_severed
from tracer.plot.maps import plot_average, plot_trace
from tracer.plot.samples import plot_samples
from tracer.plot.style import COLOURS, NOT_TRACED, ROLE_COLOURS, SPECIAL, STYLE, TWO_SIDED

__all__ = [
    "COLOURS",
    "NOT_TRACED",
    "ROLE_COLOURS",
    "SPECIAL",
    "STYLE",
    "TWO_SIDED",
    "NotebookFigure",
    "headline",
    "layer_ticks",
    "plot_agreement",
    "plot_average",
    "plot_edges",
    "plot_heads",
    "plot_lines",
    "plot_samples",
    "plot_severed",
    "plot_trace",
    "save_figure",
]
