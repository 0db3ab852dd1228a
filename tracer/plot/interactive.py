"""The heatmaps of `tracer.plot` with numbers under the pointer, for notebooks and web pages.

One map is shown at a time; a row of buttons above it changes the map. Colours and scales are those
of the printed figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from tracer.effect import AverageTrace, Settings, TraceResult
from tracer.errors import FileFormatError
from tracer.fact import ROLES
from tracer.plot import COLOURS, NOT_TRACED, ROLE_COLOURS, TWO_SIDED
from tracer.plot.figure_data import agreement, head_grids, tokens_by_role
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
    metric_words,
    scale_end,
    shown_average,
    shown_values,
    token_labels,
    trace_caption,
    traced_roles,
)
from tracer.site import Kind
from tracer.storage import atomic_path
from tracer.unit_trace import UnitTrace


def hover_trace(result: TraceResult) -> go.Figure:
    """One fact: p(answer) when restored, by token and layer; hover for role, IE and standard error."""
    values, low, meaning = shown_values(result)
    rows = [escape(label) for label in token_labels(result)]
    maps = {}
    for name in chosen_maps(values, None):
        hover = _trace_hover(result, name, rows)
        words = meaning.replace(" ", "<br>", 1)
        maps[map_title(result, name)] = _heatmap(values[name], name, hover, low, scale_end(values, name), words)
    headline = f"{escape(result.fact.text)} → {escape(result.answer.strip())}"
    return _layers_named(_figure(maps, rows, headline, trace_caption(result)), result.settings)


def hover_average(average: AverageTrace) -> go.Figure:
    """Many facts: the average indirect effect by role and layer; hover for its 95 % interval and n."""
    (aie, meaning), rows = shown_average(average), traced_roles(average)
    maps = {}
    for name in chosen_maps(aie, None):
        hover = _average_hover(average, name, rows)
        maps[f"{action(average.settings)} {map_words(name, average.settings.window)}"] = _heatmap(
            aie[name][rows], name, hover, 0.0, scale_end(aie, name), meaning.replace(" ", "<br>", 2)
        )
    headline = f"Average indirect effects over {count_facts(average.n)}"
    found = _figure(maps, [ROLES[row] for row in rows], headline, average_caption(average))
    return _layers_named(found, average.settings)


def hover_heads(trace: UnitTrace) -> go.Figure:
    """One fact: what each head alone does, by layer and head, a map for each role traced; as `tracer.plot_heads`."""
    grids = head_grids(trace)
    most = max(float(np.nanmax(np.abs(grid))) for grid in grids.values())
    maps = {}
    for title, grid in grids.items():
        hover = [
            [f"layer {layer}, head {head}<br>effect {grid[layer, head]:+.4f}" for layer in range(grid.shape[0])]
            for head in range(grid.shape[1])
        ]
        drawn = _heatmap(grid.T, "state", hover, -most, most, "effect")
        maps[escape(title)] = drawn.update(colorscale=TWO_SIDED, zmid=0)
    rows = [f"head {head}" for head in range(next(iter(grids.values())).shape[1])]
    headline = f"{escape(trace.fact.text)} → {escape(trace.answer.strip())}"
    return _figure(maps, rows, headline, f"{trace.settings.model}, {trace.settings.samples} noise samples.")


def hover_agreement(estimate: TraceResult, exact: TraceResult, kind: Kind) -> go.Figure:
    """A first-order map over the exact one, a point a site, its token and layer under the pointer."""
    found, labels = agreement(estimate, exact, kind), token_labels(exact)
    figure = go.Figure()
    for row, (role, tokens) in enumerate(tokens_by_role(exact).items()):
        if not tokens:
            continue
        layers = range(found.exact.shape[1])
        hover = [f"{escape(labels[token])}, layer {layer}" for token in tokens for layer in layers]
        across, up = found.exact[tokens].ravel(), found.estimate[tokens].ravel()
        marks = {"color": ROLE_COLOURS[row], "size": 6}
        figure.add_scatter(x=across, y=up, text=hover, mode="markers", name=role, marker=marks)
    ends = [float(np.nanmin(found.exact)), float(np.nanmax(found.exact))]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": "#888888", "width": 1}, showlegend=False)
    title = f"{map_words(kind, exact.settings.window)}: ρ = {found.correlation:.2f}, n = {found.n} sites"
    figure.update_layout(template="plotly_white", title=title, width=760, height=560)
    figure.update_xaxes(title="exact effect")
    figure.update_yaxes(title=f"first order ({estimate.settings.engine})")
    return figure


def save_html(figure: go.Figure, path: str | Path) -> Path:
    """Writes one web page that needs no network, whole or not at all; makes its folder.

    Raises:
        FileFormatError: a suffix other than .html.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise FileFormatError(f"A web page cannot be saved as {path.name!r}. End its name in .html.")
    with atomic_path(path) as temporary:
        figure.write_html(temporary, include_plotlyjs=True, full_html=True)
    return path


def _trace_hover(result: TraceResult, name: str, labels: Sequence[str]) -> list[list[str]]:
    restored = result.restored[name].mean(-1)
    effect, error = result.indirect_effect[name], result.standard_error[name]
    roles = [role or "before the subject" for role in result.roles]
    done = "restored" if result.settings.direction == "restore" else "corrupted"
    return [
        [
            f"<b>{labels[token]}</b> (token {token}, {roles[token]})<br>layer {layer_label(layer, result.settings)}"
            f"<br>{metric_words(result)} {done} {restored[token, layer]:.4f}"
            f"<br>indirect effect {_spread(effect[token, layer], error[token, layer])} (standard error)"
            for layer in range(restored.shape[1])
        ]
        for token in range(restored.shape[0])
    ]


def _average_hover(average: AverageTrace, name: str, rows: Sequence[int]) -> list[list[str]]:
    aie, error = shown_average(average)[0][name], 1.96 * average.standard_error[name]
    counts = (~np.isnan(average.effects[name])).sum(0)
    return [
        [
            f"<b>{ROLES[row]}</b><br>layer {layer_label(layer, average.settings)}"
            f"<br>average indirect effect {_spread(aie[row, layer], error[row, layer])} (95 %)"
            f"<br>n = {counts[row, layer]} facts"
            for layer in range(aie.shape[1])
        ]
        for row in rows
    ]


def _spread(mean: float, spread: float) -> str:
    return f"{mean:.4f}" if np.isnan(spread) else f"{mean:.4f} ± {spread:.4f}"


def _heatmap(
    values: np.ndarray, name: str, hover: list[list[str]], low: float, high: float, meaning: str
) -> go.Heatmap:
    """A map with colours from `low` to `high`; untraced cells are gaps, without hover."""
    return go.Heatmap(
        z=values,
        name=name,
        text=hover,
        hoverinfo="text",
        hoverongaps=False,
        colorscale=COLOURS[map_family(name)],
        zmin=low,
        zmax=max(high, low + 1e-6),
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": meaning}, "thickness": 14, "outlinewidth": 0},
    )


def _figure(maps: dict[str, go.Heatmap], rows: Sequence[str], headline: str, caption: str) -> go.Figure:
    """The maps, by title, on one pair of axes; only the first is seen until a button asks for another."""
    for n, heatmap in enumerate(maps.values()):
        heatmap.visible = n == 0
    titles = [f"<b>{headline}</b><br>{title}" for title in maps]
    figure = go.Figure(list(maps.values()))
    figure.update_layout(
        template="plotly_white",
        title={"text": titles[0], "font": {"size": 15}, "x": 0.02, "y": 0.97, "yanchor": "top"},
        updatemenus=[_buttons(list(maps.values()), titles)],
        width=900,
        height=240 + max(24 * len(rows), 160),
        margin={"l": 40, "r": 20, "t": 120, "b": 90},
        plot_bgcolor=NOT_TRACED,
    )
    ticks: dict[str, Any] = {"tickvals": list(range(len(rows))), "ticktext": list(rows), "automargin": True}
    figure.update_xaxes(title="layer", showgrid=False, zeroline=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, **ticks)
    figure.add_annotation(text=escape(caption), xref="paper", yref="paper", x=0, y=0, yshift=-70, showarrow=False)
    return figure


def _layers_named(figure: go.Figure, settings: Settings) -> go.Figure:
    """With an encoder's and its decoder's layers counted each by themselves."""
    if settings.encoder_layers:
        layers = range(np.asarray(figure.data[0].z).shape[1])  # pyright: ignore[reportAttributeAccessIssue]
        labels = [layer_label(layer, settings) for layer in layers]
        words = layer_words(settings).replace("\n", "<br>")
        figure.update_xaxes(title=words, tickvals=list(layers), ticktext=labels)
    return figure


def _buttons(maps: Sequence[go.Heatmap], titles: Sequence[str]) -> dict[str, Any]:
    """One button a map: shows it, hides the others and changes the title."""
    buttons = [
        {
            "label": heatmap.name,
            "method": "update",
            "args": [{"visible": [other == n for other in range(len(maps))]}, {"title.text": titles[n]}],
        }
        for n, heatmap in enumerate(maps)
    ]
    return {
        "type": "buttons",
        "direction": "right",
        "buttons": buttons,
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
    }
