import dataclasses
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from tracer.effect import AverageTrace, Settings, TraceResult
from tracer.errors import FactError, FileFormatError, SiteError
from tracer.fact import ROLES, TokenizedFact
from tracer.plot import NOT_TRACED, SPECIAL, plot_average, plot_lines, plot_severed, plot_trace, save_figure
from tracer.site import severed_name

N_LAYERS = 6
MAPS = ("state", "mlp", "attn", severed_name("mlp"), severed_name("attn"))
SETTINGS = Settings(
    model="toy", fingerprint="0", window=3, samples=4, seed=1, corruption="GaussianNoise(scale=3.0, sigma=0.1)"
)


def made_trace(maps: tuple[str, ...] = MAPS, tokens: tuple[str, ...] = ()) -> TraceResult:
    tokens = tokens or ("<bos>", "The", " Needle", " is", " in")
    fact = TokenizedFact(tuple(range(len(tokens))), (1, 3), tokens, special=(0,))
    random = np.random.RandomState(0)
    restored = {name: random.uniform(0.1, 0.8, (len(tokens), N_LAYERS, 4)) for name in maps}
    return TraceResult(fact, 7, " Seattle", 0.9, np.array([0.05, 0.1, 0.15, 0.1]), restored, SETTINGS)


def made_average(maps: tuple[str, ...] = MAPS, n: int = 5) -> AverageTrace:
    random = np.random.RandomState(1)
    effects = {name: random.uniform(0, 0.5, (n, len(ROLES), N_LAYERS)) for name in maps}
    for values in effects.values():
        values[:, ROLES.index("middle subject tokens")] = np.nan
    prompts = tuple(f"fact {n}" for n in range(n))
    return AverageTrace(prompts, (), random.uniform(0.6, 0.9, n), random.uniform(0, 0.1, n), effects, SETTINGS)


def panels(figure: Figure) -> list[Any]:
    """The axes that are not colour bars."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def mesh(axes: Any) -> Any:
    return next(child for child in axes.get_children() if isinstance(child, QuadMesh))


def row_labels(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def written(figure: Figure) -> str:
    """Every text on the figure, line breaks undone."""
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible()]
    return " | ".join(text.get_text().replace("\n", " ") for text in texts)


def test_the_subjects_tokens_and_no_others_are_starred() -> None:
    assert row_labels(panels(plot_trace(made_trace()))[0]) == ["<bos>", "The*", "Needle*", "is", "in"]


@pytest.mark.parametrize("n", range(1, len(MAPS) + 1))
def test_rows_are_labelled_at_the_first_panel_of_each_row_of_any_number_of_maps(n: int) -> None:
    drawn = panels(plot_trace(made_trace(MAPS[:n])))
    first = [axes for axes in drawn if axes.get_subplotspec().is_first_col()]
    labelled = [axes for axes in drawn if any(label.get_visible() for label in axes.get_yticklabels())]
    assert all(axes in labelled and row_labels(axes)[0] == "<bos>" for axes in first)
    assert len(first) == {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2}[n]


def test_special_tokens_and_no_others_are_grey() -> None:
    labels = panels(plot_trace(made_trace()))[0].get_yticklabels()
    assert [label.get_color() == SPECIAL for label in labels] == [True, False, False, False, False]


def test_a_trace_shows_the_mean_restored_probability_of_every_cell() -> None:
    result = made_trace()
    for axes, name in zip(panels(plot_trace(result)), MAPS, strict=True):
        np.testing.assert_allclose(mesh(axes).get_array(), result.restored[name].mean(-1))


def test_colours_of_a_trace_begin_at_the_corrupted_probability() -> None:
    result = made_trace()
    for axes in panels(plot_trace(result)):
        assert mesh(axes).get_clim()[0] == pytest.approx(result.corrupted)


def test_severed_maps_share_the_scale_of_the_state_and_other_maps_have_their_own() -> None:
    result = made_trace()
    state, mlp, _, *severed = [mesh(axes).get_clim()[1] for axes in panels(plot_trace(result))]
    family = [result.restored[name].mean(-1).max() for name in ("state", *MAPS[3:])]
    assert {state, *severed} == {max(family)}
    assert mlp == result.restored["mlp"].mean(-1).max()


def test_panels_stand_in_the_same_order_however_the_maps_are_stored() -> None:
    titles = [[axes.get_title() for axes in panels(plot_trace(made_trace(maps)))] for maps in (MAPS, MAPS[::-1])]
    assert titles[0] == titles[1]


def test_a_trace_without_any_effect_is_still_drawn() -> None:
    result = made_trace(("state",))
    result.restored["state"][:] = result.corrupted
    assert mesh(panels(plot_trace(result))[0]).get_clim()[0] == pytest.approx(result.corrupted)


def test_cells_that_were_not_traced_are_grey() -> None:
    result = made_trace(("state",))
    result.restored["state"][0] = np.nan
    figure = plot_trace(result)
    axes = panels(figure)[0]
    np.testing.assert_array_equal(np.ma.getmaskarray(mesh(axes).get_array())[:, 0], [True, False, False, False, False])
    assert to_hex(axes.get_facecolor()) == NOT_TRACED
    assert "grey: not traced" in written(figure)
    assert "grey: not traced" not in written(plot_trace(made_trace()))


def test_a_trace_names_its_answer_and_both_probabilities() -> None:
    text = written(plot_trace(made_trace()))
    assert "Seattle" in text and "0.9 clean" in text and "0.1 with the subject (*) corrupted" in text


def test_titles_say_the_window_and_what_is_severed() -> None:
    titles = [axes.get_title().replace("\n", " ") for axes in panels(plot_trace(made_trace()))]
    assert titles[0] == "Impact of restoring state after corrupted input"
    assert "MLP for windowed interval of 3 layers" in titles[1]
    assert "MLP severed" in titles[3] and "attention severed" in titles[4]


def test_kind_draws_that_map_only() -> None:
    result, average = made_trace(), made_average()
    (axes,) = panels(plot_trace(result, kind="mlp"))
    np.testing.assert_allclose(mesh(axes).get_array(), result.restored["mlp"].mean(-1))
    assert len(panels(plot_average(average, kind="attn"))) == 1
    assert len(panels(plot_lines(average, kinds=["attn", "mlp"]))) == 2


@pytest.mark.parametrize("draw", [plot_trace, plot_average])
def test_an_unknown_map_is_an_error_that_lists_the_known_ones(draw) -> None:
    made = made_trace(("state",)) if draw is plot_trace else made_average(("state",))
    with pytest.raises(SiteError, match="'mlp' here. Choose from 'state'"):
        draw(made, kind="mlp")


def test_tokens_with_dollars_blanks_or_line_breaks_are_drawn_literally(tmp_path: Path) -> None:
    figure = plot_trace(made_trace(("state",), ("$x_{", " $", "\n", " ", "}$")))
    save_figure(figure, tmp_path / "odd.png")
    assert row_labels(panels(figure)[0]) == ["$x_{", "$*", r"\n*", "␣", "}$"]
    assert not any(label.get_parse_math() for label in panels(figure)[0].get_yticklabels())


def test_layer_ticks_do_not_crowd_with_many_layers() -> None:
    result = made_trace(("state",))
    many = {"state": np.repeat(result.restored["state"], 8, axis=1)}
    axes = panels(plot_trace(TraceResult(**{**vars(result), "restored": many})))[0]
    np.testing.assert_array_equal(axes.get_xticks(), range(0, 48, 5))


def test_an_average_drops_the_roles_that_no_fact_has() -> None:
    axes = panels(plot_average(made_average()))[0]
    assert row_labels(axes) == [role for role in ROLES if role != "middle subject tokens"]
    assert mesh(axes).get_array().shape == (len(ROLES) - 1, N_LAYERS)


def test_colours_of_an_average_begin_at_zero() -> None:
    assert {mesh(axes).get_clim()[0] for axes in panels(plot_average(made_average()))} == {0.0}


def test_the_outline_and_its_text_are_at_the_largest_average_effect() -> None:
    average = made_average()
    for axes, name in zip(panels(plot_average(average)), MAPS, strict=True):
        drawn = mesh(axes).get_array()
        row, layer = np.unravel_index(drawn.argmax(), drawn.shape)
        (outline,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert outline.get_xy() == (layer - 0.5, row - 0.5)
        error = average.standard_error[name][ROLES.index(row_labels(panels(axes.figure)[0])[row]), layer]
        assert f"peak: layer {layer}, {drawn.max():.3f} ± {1.96 * error:.3f}" in axes.get_xlabel()


def test_an_average_of_a_falling_metric_is_drawn_with_its_signs_turned() -> None:
    """Its figures are those of the negated average: the sites that carry the answer are coloured, not white."""
    rising = made_average()
    settings = dataclasses.replace(SETTINGS, metric="kl", direction="corrupt")
    turned = {name: -values for name, values in rising.effects.items()}
    falling = dataclasses.replace(rising, effects=turned, settings=settings)
    for one, other, name in zip(panels(plot_average(rising)), panels(plot_average(falling)), MAPS, strict=True):
        np.testing.assert_allclose(mesh(other).get_array(), mesh(one).get_array())
        assert other.get_xlabel() == one.get_xlabel()
        assert other.get_title().replace("\n", " ").startswith("Average effect of corrupting"), name
    bars = [[bar.get_height() for bar in panels(plot_severed(each))[0].patches] for each in (rising, falling)]
    assert bars[0] == bars[1]
    lines = [[list(line.get_ydata()) for line in panels(plot_lines(each))[0].lines] for each in (rising, falling)]
    assert lines[0] == lines[1]
    assert "average effect on KL from the clean run (nats)" in written(plot_average(falling))


def test_an_average_names_its_facts_and_total_effect() -> None:
    average = made_average()
    effect = average.total_effect
    text = written(plot_average(average))
    assert "over 5 facts" in text
    assert f"{effect.mean:.3f} ± {1.96 * effect.standard_error:.3f}" in text


def test_an_average_of_one_fact_has_no_intervals() -> None:
    average = made_average(n=1)
    text = written(plot_average(average))
    assert "over 1 fact" in text and "1 facts" not in text and "nan" not in text
    plot_severed(average).draw_without_rendering()
    plot_lines(average).draw_without_rendering()


@pytest.mark.parametrize("maps", [MAPS, ("state", MAPS[3]), ("state", "mlp", MAPS[4])])
def test_every_severed_map_has_bars_as_high_as_its_average_effect(maps: tuple[str, ...]) -> None:
    average, row = made_average(maps), ROLES.index("last token")
    axes = panels(plot_severed(average, role="last token"))[0]
    drawn = [name for name in maps if name.startswith("state")]
    bars = [container for container in axes.containers if hasattr(container, "patches")]
    for name, container in zip(drawn, bars, strict=True):
        heights = [bar.get_height() for bar in container.patches]
        np.testing.assert_allclose(heights, average.indirect_effect[name][row])


def test_error_bars_span_the_95_percent_interval() -> None:
    average = made_average()
    axes = panels(plot_severed(average))[0]
    errors = [container for container in axes.containers if not hasattr(container, "patches")]
    assert len(errors) == 3
    for container, name in zip(errors, ("state", *MAPS[3:]), strict=True):
        (lines,) = container.lines[2]
        for layer, segment in enumerate(lines.get_segments()):
            interval = average.estimate(name, "last subject token", layer).interval
            np.testing.assert_allclose(segment[:, 1], interval)


def test_bars_of_one_layer_do_not_overlap_each_other_or_the_next_layer() -> None:
    axes = panels(plot_severed(made_average()))[0]
    bars = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    assert len(bars) == 3 * N_LAYERS
    assert all(right <= left + 1e-9 for (_, right), (left, _) in zip(bars, bars[1:], strict=False))


@pytest.mark.parametrize("maps", [("state", "mlp"), MAPS[3:]])
def test_a_severed_plot_without_its_maps_says_what_to_trace(maps: tuple[str, ...]) -> None:
    with pytest.raises(SiteError, match=r'kinds=\("state",\), severed=\("mlp", "attn"\)'):
        plot_severed(made_average(maps))


def test_a_severed_plot_of_a_role_that_is_unknown_or_absent_is_an_error() -> None:
    with pytest.raises(FactError, match="There is no role 'verb'"):
        plot_severed(made_average(), role="verb")
    with pytest.raises(SiteError, match="middle subject tokens"):
        plot_severed(made_average(), role="middle subject tokens")


def test_lines_run_through_the_average_effects_of_each_role() -> None:
    average = made_average(("mlp",))
    lines = {line.get_label(): line for line in panels(plot_lines(average))[0].lines}
    for row, role in enumerate(ROLES):
        if role == "middle subject tokens":
            assert role not in lines
        else:
            np.testing.assert_allclose(lines[role].get_ydata(), average.indirect_effect["mlp"][row])


def test_drawing_and_saving_leave_matplotlibs_settings_and_pyplot_alone(tmp_path: Path) -> None:
    import matplotlib.pyplot as pyplot

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # so that what an earlier test left behind hides nothing
        before, open_before = dict(matplotlib.rcParams), pyplot.get_fignums()
        save_figure(plot_trace(made_trace()), tmp_path / "trace.png")
        for draw in (plot_average, plot_severed, plot_lines):
            draw(made_average())
        assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == open_before


def test_a_notebook_shows_a_figure_as_one_picture() -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    shown, _ = formatters.DisplayFormatter().format(plot_trace(made_trace(("state",))))
    assert sorted(shown) == ["image/png", "text/plain"]


@pytest.mark.parametrize(
    ("suffix", "begins"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml"), (".PNG", b"\x89PNG")]
)
def test_a_figure_is_saved_as_its_suffix_says_in_a_folder_made_for_it(
    tmp_path: Path, suffix: str, begins: bytes
) -> None:
    path = save_figure(plot_severed(made_average()), tmp_path / "new" / f"figure{suffix}")
    assert path == tmp_path / "new" / f"figure{suffix}"
    assert path.read_bytes().startswith(begins)
    assert list(path.parent.iterdir()) == [path]


def test_the_words_of_a_vector_figure_are_text_and_not_outlines(tmp_path: Path) -> None:
    path = save_figure(plot_severed(made_average()), tmp_path / "figure.svg")
    texts = ["".join(text.itertext()) for text in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]
    assert "layer" in texts and "average indirect effect" in texts
    assert b"/Type3" not in save_figure(plot_severed(made_average()), tmp_path / "figure.pdf").read_bytes()


@pytest.mark.parametrize("name", ["figure.jpg", "figure"])
def test_an_unsupported_suffix_is_an_error_that_names_the_supported_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileFormatError, match=r"\.png, \.pdf, \.svg"):
        save_figure(Figure(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_figure(Figure(), tmp_path / "figure.png")
    before = path.read_bytes()

    def fail(self: Figure, target: Path, **options: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(Figure(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
