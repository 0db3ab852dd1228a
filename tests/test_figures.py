"""Figures of heads, edges, samples and first-order maps show the numbers that they are given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import toys
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch, Rectangle
from test_plot import made_trace, mesh, panels, row_labels, written

import tracer
from tracer.effect import TraceResult
from tracer.errors import FactError, SiteError
from tracer.fact import TokenizedFact
from tracer.plot import plot_agreement, plot_edges, plot_heads, plot_samples
from tracer.plot.edges import GAINED, LOST
from tracer.plot.interactive import hover_agreement, hover_heads
from tracer.unit_trace import UnitTrace

N_LAYERS, N_HEADS = 3, 2
FACT = TokenizedFact((1, 2, 3, 4, 5), (1, 3), ("<bos>", " The", " Needle", " is", " in"), special=(0,))


def made_heads(metric: str = "probability") -> UnitTrace:
    """Heads traced at tokens 2 (last of the subject) and 4 (last)."""
    units = tuple((layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS))
    restored = np.full((5, len(units), 4), np.nan)
    restored[[2, 4]] = np.random.RandomState(0).uniform(0, 0.6, (2, len(units), 4))
    settings = dataclasses.replace(made_trace().settings, metric=metric)
    return UnitTrace(FACT, "head", units, 7, " Seattle", 0.9, np.full(4, 0.3), restored, settings)


@pytest.mark.parametrize(("metric", "sign"), [("probability", 1), ("kl", -1)])
def test_a_head_s_cell_is_its_effect_towards_the_clean_answer(metric: str, sign: int) -> None:
    trace = made_heads(metric)
    shown = panels(plot_heads(trace))
    assert [axes.get_title().replace("\n", " ") for axes in shown] == [
        "last subject token: 'Needle'",
        "last token: 'in'",
    ]
    for axes, token in zip(shown, (2, 4), strict=True):
        effect = sign * (trace.restored[token].mean(-1) - 0.3).reshape(N_LAYERS, N_HEADS)
        np.testing.assert_allclose(mesh(axes).get_array(), effect.T)
        layer, head = np.unravel_index(np.abs(effect).argmax(), effect.shape)
        (outline,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert outline.get_xy() == (layer - 0.5, head - 0.5)
        assert f"layer {layer}, head {head}, {effect[layer, head]:+.2g}" in axes.get_xlabel()
    low, high = mesh(shown[0]).get_clim()
    assert low == -high == pytest.approx(-np.nanmax(np.abs(trace.unit_effect)))
    hovered = hover_heads(trace).data[1]
    np.testing.assert_allclose(np.array(hovered.z), mesh(shown[1]).get_array())


def test_one_role_or_token_is_one_panel_and_one_that_was_not_traced_is_named() -> None:
    trace = made_heads()
    by_role, by_token = panels(plot_heads(trace, role="last token")), panels(plot_heads(trace, token=4))
    assert len(by_role) == len(by_token) == 1 and by_token[0].get_title() == "token 4: 'in'"
    np.testing.assert_array_equal(mesh(by_role[0]).get_array(), mesh(by_token[0]).get_array())
    with pytest.raises(SiteError, match=r"not traced at token 3; they were at the tokens 2 \(last subject token\), 4"):
        plot_heads(trace, token=3)
    with pytest.raises(SiteError, match="not traced at first subject token"):
        plot_heads(trace, role="first subject token")
    with pytest.raises(FactError, match="no role 'verb'"):
        plot_heads(trace, role="verb")
    with pytest.raises(SiteError, match="trace of neurons"):
        plot_heads(dataclasses.replace(trace, kind="neuron"))


@pytest.fixture(scope="module")
def edges() -> tracer.EdgeScores:
    model = tracer.load(toys.llama(), check=False)
    fact = TokenizedFact(tuple(toys.IDS[0].tolist()), (1, 3), answer_ids=(5,))
    return tracer.attribute_edges(model, fact, steps=1, samples=1, corruption=tracer.GaussianNoise(3.0, 0.1))


def test_the_strongest_edges_are_drawn_as_wide_as_they_are_and_coloured_by_sign(edges: tracer.EdgeScores) -> None:
    top = edges.top(12)
    figure = plot_edges(edges, most=12)
    (axes,) = figure.axes
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == 12
    largest = abs(top[0][1])
    for arrow, (edge, score) in zip(reversed(arrows), top, strict=True):
        assert arrow.get_linewidth() == pytest.approx(0.5 + 4 * abs(score) / largest)
        assert to_hex(arrow.get_edgecolor()) == (GAINED if score > 0 else LOST)
        assert (arrow.get_linestyle() in ("--", "dashed")) == (edge.target.kind == "q")
    assert "The 12 strongest edges" in written(figure) and f"at most {largest:.3g}" in written(figure)
    assert row_labels(axes) == ["head 0", "head 1", "head 2", "head 3", "MLP"]
    figure.draw_without_rendering()


def test_the_title_names_the_prompt_also_of_scores_that_were_saved(edges: tracer.EdgeScores, tmp_path: Path) -> None:
    assert edges.prompt and f"strongest edges: {edges.prompt}" in written(plot_edges(edges))
    said = dataclasses.replace(edges, prompt="The capital of France is")
    said.save(tmp_path / "edges.safetensors")
    kept = tracer.EdgeScores.load(tmp_path / "edges.safetensors")
    assert "strongest edges: The capital of France is" in written(plot_edges(kept))


def test_edges_run_from_earlier_to_later_and_a_key_head_stands_amid_the_heads_it_serves(edges) -> None:
    figure = plot_edges(edges, most=10_000)
    count = int((~np.isnan(edges.scores)).sum())
    arrows = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == count
    ends = {}
    for arrow, (edge, _) in zip(reversed(arrows), edges.top(10_000), strict=True):
        begin, end = arrow._posA_posB  # type: ignore[attr-defined]  # matplotlib gives an arrow's ends no other way
        assert begin[0] < end[0], edge
        ends[str(edge.target)] = end[1]
    assert [ends["k[1.0]"], ends["v[1.1]"], ends["q[1.3]"]] == [0.5, 2.5, 3]  # 4 heads share 2 key heads
    with pytest.raises(SiteError, match="k=0"):
        plot_edges(edges, most=0)


def test_dots_are_the_samples_of_each_fact_at_its_own_peak_largest_effect_first() -> None:
    one, other = made_trace(), made_trace()
    weaker = {name: 0.5 * values for name, values in other.restored.items()}
    weak = dataclasses.replace(other, restored=weaker)
    (axes,) = plot_samples([weak, one]).axes
    for place, result in enumerate((one, weak)):
        effect = result.indirect_effect["mlp"]
        token, layer = np.unravel_index(effect.argmax(), effect.shape)
        _, corrupted, restored, clean = axes.lines[4 * place : 4 * place + 4]
        np.testing.assert_array_equal(corrupted.get_xdata(), result.corrupted_samples)
        np.testing.assert_array_equal(restored.get_xdata(), result.restored["mlp"][token, layer])
        assert list(clean.get_xdata()) == [0.9]
        assert row_labels(axes)[place] == f"The Needle  ({result.tokens[token].strip()}, {layer})"


def test_at_a_role_the_peak_is_taken_among_its_tokens_and_by_the_metric_s_sense() -> None:
    result = made_trace()
    falling = dataclasses.replace(result, settings=dataclasses.replace(result.settings, metric="kl"))
    for trace, best in ((result, np.argmax), (falling, np.argmin)):
        (axes,) = plot_samples([trace], role="last token").axes
        assert row_labels(axes) == [f"The Needle  (in, {best(trace.indirect_effect['mlp'][-1])})"]
    with pytest.raises(SiteError, match="no 'attn'"):
        plot_samples([made_trace(("mlp",))], kind="attn")
    with pytest.raises(SiteError, match="not traced at a middle subject tokens"):
        plot_samples([result], role="middle subject tokens")
    with pytest.raises(FactError, match="different settings"):
        plot_samples([result, falling])
    with pytest.raises(FactError, match="No traces"):
        plot_samples([])


def estimated(exact: TraceResult, engine: str = "atp") -> TraceResult:
    """A first-order trace whose effects are the exact ones squared, sign kept: the same ranks."""
    base = exact.corrupted_samples
    effects = {name: values - base for name, values in exact.restored.items()}
    squared = {name: base + np.sign(mean) * mean**2 for name, mean in
               ((name, each.mean(-1, keepdims=True)) for name, each in effects.items())}  # fmt: skip
    return dataclasses.replace(exact, restored=squared, settings=dataclasses.replace(exact.settings, engine=engine))


def test_points_are_the_sites_from_the_subject_on_with_their_rank_correlation() -> None:
    exact = made_trace(("state", "mlp"))
    estimate = estimated(exact)
    for axes, kind in zip(plot_agreement(estimate, exact).axes, ("state", "mlp"), strict=True):
        drawn = np.concatenate([np.array(line.get_xydata()) for line in axes.lines if line.get_marker() != "None"])
        one, other = (result.indirect_effect[kind][1:].ravel() for result in (exact, estimate))
        order = np.lexsort((other, one))
        np.testing.assert_allclose(drawn[np.lexsort(drawn.T[::-1])], np.stack([one, other], 1)[order])
        assert "ρ = 1.00, n = 24" in axes.get_title()
    hovered = hover_agreement(estimate, exact, "mlp")
    assert sum(len(trace.x) for trace in hovered.data if trace.mode == "markers") == 24
    assert "ρ = 1.00, n = 24 sites" in hovered.layout.title.text


def test_sizes_are_compared_with_sizes() -> None:
    exact = dataclasses.replace(made_trace(("mlp",)), corrupted_samples=np.full(4, 0.45))
    sized = estimated(exact, "graddrop")
    assert (exact.indirect_effect["mlp"][1:] < 0).any()
    restored = sized.corrupted_samples + np.abs(sized.restored["mlp"] - sized.corrupted_samples)
    sized = dataclasses.replace(sized, restored={"mlp": restored})
    (axes,) = plot_agreement(sized, exact).axes
    assert "ρ = 1.00" in axes.get_title() and axes.get_xlabel() == "size of the exact effect"


def test_maps_of_other_draws_or_facts_are_not_compared() -> None:
    exact = made_trace()
    seeded = dataclasses.replace(exact, settings=dataclasses.replace(exact.settings, seed=2, engine="atp"))
    with pytest.raises(FactError, match="different facts, windows or draws"):
        plot_agreement(seeded, exact)
    with pytest.raises(SiteError, match="no map 'heads'"):
        plot_agreement(estimated(exact), exact, kind="heads")
