"""How far noise samples spread: each sample's run at every fact's own peak."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tracer.effect import TraceResult
from tracer.errors import FactError
from tracer.metric import METRIC_WORDS
from tracer.plot.canvas import NotebookFigure, headline
from tracer.plot.figure_data import Peak, peak_of
from tracer.plot.labels import count_facts, map_words
from tracer.plot.style import STYLE

RESTORED, CORRUPTED = "#0072b2", "#d55e00"


def plot_samples(results: Iterable[TraceResult], *, kind: str = "mlp", role: str | None = None) -> Figure:
    """Many facts: a dot for each noise sample, corrupted (open) and restored at the fact's own peak (filled).

    A line joins their means, a bar stands at the clean run. Facts with the largest effect come first.

    Args:
        results: traces with the same settings.
        kind: the map whose peak is taken.
        role: look for the peak at tokens of this role only.

    Raises:
        FactError: no traces, or traces with different settings.
        SiteError: a trace without that map, or without a token of that role.
    """
    results = list(results)
    if not results or not all(isinstance(result, TraceResult) for result in results):
        raise FactError("No traces to draw. Of a study give [trace for _, trace in study.traces()].")
    settings = results[0].settings
    if any(result.settings != settings for result in results):
        raise FactError("These traces were made with different settings; draw alike ones.")
    peaks = [peak_of(result, kind, role) for result in results]
    order = sorted(range(len(results)), key=lambda n: -peaks[n].effect)
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(7.0, 1.5 + 0.24 * len(results)), layout="constrained")
        axes = figure.add_subplot()
        for place, n in enumerate(order):
            _row(axes, place, results[n], peaks[n], kind)
        labels = [f"{peaks[n].subject}  ({peaks[n].token.strip()}, {peaks[n].layer})" for n in order]
        axes.set_yticks(range(len(order)), labels)
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_xlabel(METRIC_WORDS[settings.metric])
        _finish(axes, settings.direction)
        where = f"at the {role}" if role else "among the tokens traced"
        title = f"{map_words(kind, settings.window)}: {settings.samples} noise samples of {count_facts(len(results))}"
        caption = f"In brackets: token and layer of the fact's peak {where}. {settings.model}."
        headline(figure, title[0].upper() + title[1:], caption)
    return figure


def _row(axes: Axes, place: int, result: TraceResult, peak: Peak, kind: str) -> None:
    restored = result.restored[kind][peak.position, peak.layer]
    base = result.corrupted_samples
    begin = result.clean if result.settings.direction == "corrupt" else base.mean()
    axes.plot([begin, restored.mean()], [place, place], color="#999999", linewidth=0.9, zorder=1)
    axes.plot(base, np.full(len(base), place - 0.13), "o", markersize=3.4, markerfacecolor="white",
              markeredgecolor=CORRUPTED, markeredgewidth=0.9)  # fmt: skip
    axes.plot(restored, np.full(len(restored), place + 0.13), "o", markersize=3.6, color=RESTORED,
              alpha=0.75, markeredgewidth=0)  # fmt: skip
    axes.plot(result.clean, place, "|", color="black", markersize=9, markeredgewidth=1.3)


def _finish(axes: Axes, direction: str) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=8, width=0.6, length=2.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.6)
    axes.set_axisbelow(True)
    done = "corrupted there alone" if direction == "corrupt" else "restored there"
    axes.plot([], [], "o", markerfacecolor="white", markeredgecolor=CORRUPTED, label="corrupted")
    axes.plot([], [], "o", color=RESTORED, markeredgewidth=0, label=done)
    axes.plot([], [], "|", color="black", markeredgewidth=1.3, label="clean run")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderpad=0)
