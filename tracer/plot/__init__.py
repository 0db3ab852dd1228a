"""Figures of traces for print, each from a value that a computation returned."""

from tracer.plot.canvas import NotebookFigure, headline, save_figure
from tracer.plot.lines import plot_lines, plot_severed
from tracer.plot.maps import plot_average, plot_trace
from tracer.plot.style import COLOURS, NOT_TRACED, SPECIAL, STYLE

__all__ = [
    "COLOURS",
    "NOT_TRACED",
    "SPECIAL",
    "STYLE",
    "NotebookFigure",
    "headline",
    "plot_average",
    "plot_lines",
    "plot_severed",
    "plot_trace",
    "save_figure",
]
