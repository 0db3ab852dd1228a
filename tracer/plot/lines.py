"""Average effects by layer: severed paths as bars (Meng et al. 2022, fig. 3), roles as lines."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tracer.effect import AverageTrace, Settings
from tracer.errors import SiteError
from tracer.fact import ROLES, check_roles
from tracer.plot.canvas import NotebookFigure, headline, layer_ticks, panel_title, panels_for
from tracer.plot.labels import (
    action,
    average_caption,
    chosen_maps,
    count_facts,
    layer_words,
    map_words,
    shown_average,
    traced_roles,
)
from tracer.plot.style import BAR_COLOURS, ROLE_COLOURS, SEVERED_WORDS, STYLE


def plot_severed(average: AverageTrace, *, role: str = "last subject token") -> Figure:
    """AIE of restoring (or corrupting) the state, by layer, whole and with MLP or attention severed; 95 % intervals.

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
        axes.set(ylabel=shown_average(average)[1], xlim=(-0.7, n_layers - 0.3))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names), frameon=False)
        _finish_lines(axes, n_layers, average.settings)
        caption = f"{average_caption(average)} Error bars: 95 %."
        headline(figure, f"{action(average.settings).capitalize()} the {role} with modules severed", caption)
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
        figure, panels = panels_for(names, ROLES, n_layers=n_layers, row_height=0.36)
        for axes, name in zip(panels, names, strict=True):
            for row in traced_roles(average):
                _line(axes, average, name, row)
            panel_title(axes, f"{action(average.settings).capitalize()} {map_words(name, average.settings.window)}")
            axes.margins(x=0.01)
            _finish_lines(axes, n_layers, average.settings)
        panels[0].set_ylabel(shown_average(average)[1])
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        headline(figure, f"Average indirect effects over {count_facts(average.n)}", average_caption(average))
    return figure


def _bars(axes: Axes, average: AverageTrace, name: str, row: int, *, place: int, places: int) -> None:
    """AIE of one role by layer with its 95 % intervals: bar `place` of the `places` side by side at a layer."""
    heights, errors = shown_average(average)[0][name][row], 1.96 * average.standard_error[name][row]
    width = 0.84 / places
    middle = np.arange(len(heights)) + (place - (places - 1) / 2) * width
    axes.bar(middle, heights, width, label=SEVERED_WORDS[name], color=BAR_COLOURS[name])
    axes.errorbar(middle, heights, errors, fmt="none", ecolor="#333333", elinewidth=0.7, capsize=1.3)


def _line(axes: Axes, average: AverageTrace, name: str, row: int) -> None:
    aie, errors = shown_average(average)[0][name][row], 1.96 * average.standard_error[name][row]
    axes.plot(aie, color=ROLE_COLOURS[row], linewidth=1.4, label=ROLES[row])
    band = {"y1": aie - errors, "y2": aie + errors}
    axes.fill_between(range(len(aie)), **band, color=ROLE_COLOURS[row], alpha=0.18, linewidth=0)


def _finish_lines(axes: Axes, n_layers: int, settings: Settings) -> None:
    axes.axhline(0, color="black", linewidth=0.6)
    layer_ticks(axes, n_layers, encoder=settings.encoder_layers)
    axes.set_xlabel(layer_words(settings))
    axes.spines[["top", "right"]].set_visible(False)
