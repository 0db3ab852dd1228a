import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from tracer.effect import AverageTrace, Settings, TraceResult
from tracer.errors import FileFormatError
from tracer.fact import ROLES, TokenizedFact
from tracer.plot.interactive import hover_average, hover_trace, save_html
from tracer.site import severed_name

N_LAYERS = 4
MAPS = ("state", "mlp", severed_name("mlp"))
SETTINGS = Settings(
    model="toy", fingerprint="0", window=3, samples=4, seed=1, corruption="GaussianNoise(scale=3.0, sigma=0.1)"
)


@pytest.fixture
def result() -> TraceResult:
    fact = TokenizedFact((0, 1, 2, 3), (1, 3), ("<bos>", "The", " Needle", " in"), special=(0,))
    random = np.random.RandomState(0)
    restored = {name: random.uniform(0.1, 0.8, (4, N_LAYERS, 4)) for name in MAPS}
    return TraceResult(fact, 7, " Seattle", 0.9, np.array([0.05, 0.1, 0.15, 0.1]), restored, SETTINGS)


@pytest.fixture
def average() -> AverageTrace:
    random = np.random.RandomState(1)
    effects = {name: random.uniform(0, 0.5, (5, len(ROLES), N_LAYERS)) for name in MAPS}
    for values in effects.values():
        values[:, 1] = np.nan  # no fact has middle subject tokens
        values[:2, 0] = np.nan  # and two have no first subject token of their own
    return AverageTrace(tuple("abcde"), (), np.full(5, 0.8), np.full(5, 0.1), effects, SETTINGS)


def maps(figure: go.Figure) -> list[Any]:
    return list(figure.data)


def numbers(text: str, after: str) -> list[float]:
    """The number, or the two joined by ±, that follow these words."""
    found = re.search(rf"{re.escape(after)} (-?[\d.]+)(?: ± ([\d.]+))?", text)
    assert found, text
    return [float(number) for number in found.groups() if number is not None]


def test_hover_on_a_trace_tells_the_site_and_its_effect(result: TraceResult) -> None:
    for heatmap in maps(hover_trace(result)):
        name = heatmap.name
        for token in range(4):
            for layer in range(N_LAYERS):
                text = heatmap.text[token][layer]
                effect = result.indirect_effect[name][token, layer], result.standard_error[name][token, layer]
                assert numbers(text, "indirect effect") == pytest.approx(effect, abs=5e-5)
                assert numbers(text, "restored") == pytest.approx(
                    [result.restored[name][token, layer].mean()], abs=5e-5
                )
                assert numbers(text, "layer") == [layer] and numbers(text, "(token") == [token]
    assert "Needle*" in maps(hover_trace(result))[0].text[2][0]
    assert "last subject token" in maps(hover_trace(result))[0].text[2][0]
    assert "before the subject" in maps(hover_trace(result))[0].text[0][0]


def test_hover_on_an_average_tells_the_role_the_interval_and_how_many_facts(average: AverageTrace) -> None:
    kept = [role for role in ROLES if role != "middle subject tokens"]
    for heatmap in maps(hover_average(average)):
        for row, role in enumerate(kept):
            for layer in range(N_LAYERS):
                text = heatmap.text[row][layer]
                estimate = average.estimate(heatmap.name, role, layer)
                expected = [estimate.mean, 1.96 * estimate.standard_error]
                assert numbers(text, "average indirect effect") == pytest.approx(expected, abs=5e-5)
                assert numbers(text, "n =") == [estimate.n] and f"<b>{role}</b>" in text
    assert numbers(maps(hover_average(average))[0].text[0][0], "n =") == [3]


def test_colours_and_scales_are_those_of_the_printed_figures(result: TraceResult, average: AverageTrace) -> None:
    state, mlp, severed = maps(hover_trace(result))
    assert {heatmap.zmin for heatmap in (state, mlp, severed)} == {result.corrupted}
    assert state.zmax == severed.zmax and state.colorscale == severed.colorscale != mlp.colorscale
    assert mlp.zmax == result.restored["mlp"].mean(-1).max()
    np.testing.assert_allclose(mlp.z, result.restored["mlp"].mean(-1))
    assert {heatmap.zmin for heatmap in maps(hover_average(average))} == {0.0}


def test_each_button_shows_its_own_map_and_title_only(result: TraceResult) -> None:
    figure = hover_trace(result)
    assert [heatmap.visible for heatmap in maps(figure)] == [True, False, False]
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == list(MAPS)
    for n, button in enumerate(buttons):
        traces, layout = button.args
        assert traces["visible"] == [other == n for other in range(len(MAPS))]
        figure.update_layout(layout)  # plotly accepts it
    assert "MLP severed" in figure.layout.title.text


def test_tokens_that_look_like_tags_are_not_read_as_tags(result: TraceResult) -> None:
    figure = hover_trace(result)
    assert figure.layout.yaxis.ticktext == ("&lt;bos&gt;", "The*", "Needle*", "in")
    assert "<bos>" not in maps(figure)[0].text[0][0]


def test_cells_that_were_not_traced_do_not_answer_the_pointer(result: TraceResult) -> None:
    result.restored["state"][0] = np.nan
    heatmap = maps(hover_trace(result))[0]
    assert np.isnan(heatmap.z[0]).all() and not heatmap.hoverongaps


def test_a_single_sample_has_no_standard_error_to_show(result: TraceResult) -> None:
    one = {name: values[..., :1] for name, values in result.restored.items()}
    single = TraceResult(**{**vars(result), "restored": one, "corrupted_samples": np.array([0.1])})
    assert "±" not in maps(hover_trace(single))[0].text[0][0]


def test_the_page_needs_no_network(tmp_path: Path, result: TraceResult) -> None:
    path = save_html(hover_trace(result), tmp_path / "new" / "trace.html")
    page = path.read_text(encoding="utf-8")
    assert "<html>" in page[:100] and page.rstrip().endswith("</html>")
    assert not re.search(r"<(script|link)[^>]*\s(src|href)=", page)
    assert len(page) > 1_000_000, "plotly.js is not inside"
    assert "Needle*" in page
    assert list(path.parent.iterdir()) == [path]


def test_another_suffix_than_html_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"End its name in \.html"):
        save_html(go.Figure(), tmp_path / "trace.png")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_no_half_written_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: go.Figure, target: Path, **options: object) -> None:
        Path(target).write_text("<html>half")
        raise OSError("disk full")

    monkeypatch.setattr(go.Figure, "write_html", fail)
    with pytest.raises(OSError, match="disk full"):
        save_html(go.Figure(), tmp_path / "trace.html")
    assert list(tmp_path.iterdir()) == []
