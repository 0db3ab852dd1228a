"""Tables, figures and the page of a comparison: they say what the records say, and the page does so in a browser."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
from compared import COST, DATA, planted_comparison, point, scores, with_hops
from matplotlib.text import Text
from test_report import Elements, in_browser

from editing.comparison import Comparison, read_comparison, recommend, save_comparison
from editing.comparison.plot import plot_costs
from editing.comparison.profile import profile
from editing.comparison.report import UNIT, report_data
from editing.comparison.tables import _wide, scores_frame, shown_tables
from editing.comparison.ticks import log_ticks, ratio_ticks
from editing.metrics.definitions import DEFINITIONS
from tracer.errors import FileFormatError


def of(reliability: float, locality: float, n: int = 4, seconds: float = 1.0) -> list[dict]:
    after = {"reliability_token_acc": reliability, "reliability_tf_exact": reliability, "locality_agreement": locality}
    before = {"reliability_token_acc": 0.25, "reliability_tf_exact": 0.25}
    return [scores(at, after, before, seconds) for at in range(n)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    single = {"copies": of(0.0, 1.0), "good": of(0.9, 0.8), "shouts": of(1.0, 0.0)}
    batches = {name: {1: records[:1], 4: records} for name, records in single.items()}
    fixed = [scores(0, {"specificity_accuracy": 0.7})]
    points = {name: [point(2, of(0.5, 1, 2), [], ratio=1.2), point(4, of(0.4, 1), fixed, ratio=3.0)] for name in single}
    families = {"copies": "memory", "good": "locate then edit", "shouts": "locate then edit"}
    costs = dict.fromkeys(single, COST)
    folder = tmp_path_factory.mktemp("comparison")
    return planted_comparison(folder, single, batches=batches, points=points, costs=costs, families=families)


@pytest.fixture(scope="module")
def page(whole: Comparison) -> Path:
    paths, _ = save_comparison(whole)
    assert [path.name for path in paths] == [
        "records.jsonl", "table.csv", "table.md", "table.tex", "properties.png", "costs.png", "batch_counterfact.png",
        "sequential_counterfact.png", "report.html",
    ]  # fmt: skip
    return paths[-1]


def test_every_number_stands_with_metric_n_interval_file_and_slice(whole: Comparison, page: Path) -> None:
    table = pd.read_csv(page.with_name("table.csv"))
    assert set(table["score"]) <= set(DEFINITIONS) and table["n"].notna().all()
    assert set(table["data_sha256"]) == {DATA["file_sha256"]} and set(table["slice"]) == {DATA["slice"]}
    row = table.query("editor == 'good' and protocol == 'single' and when == 'after' and score == 'locality_agreement'")
    assert row[["mean", "half_width", "n", "edits"]].to_numpy().tolist() == [[80, 0, 4, 1]]
    last = table.query("editor == 'good' and protocol == 'sequential' and score == 'perplexity_ratio'")
    assert last[["edits", "mean"]].to_numpy().tolist() == [[2, 1.2], [4, 3.0]]
    text = page.with_name("table.md").read_text("utf-8")
    assert DATA["file_sha256"] in text and "first 4 of 9 records" in text
    assert page.with_name("table.tex").read_text("utf-8").count("tabular") == 2 * len(
        shown_tables(whole, scores_frame(whole))
    )


def test_times_between_two_powers_of_ten_are_drawn(tmp_path: Path) -> None:
    found = planted_comparison(tmp_path, {"fast": of(1.0, 1.0, seconds=2.0), "slow": of(1.0, 1.0, seconds=5.0)})
    assert tmp_path / "figures" / "costs.png" in save_comparison(found)[0]


def test_a_comparison_of_sequences_alone_has_no_figure_of_quality_against_time(tmp_path: Path) -> None:
    points = {"good": [point(2, of(0.5, 1, 2), []), point(4, of(0.4, 1), [])]}
    drawn = {path.name for path in save_comparison(planted_comparison(tmp_path, {}, points=points))[0]}
    assert "sequential_counterfact.png" in drawn and "costs.png" not in drawn


def test_a_comparison_without_any_property_has_tables_alone(tmp_path: Path) -> None:
    batches = {"good": {2: [scores(at, {"generalization_token_acc": 0.5}) for at in range(2)]}}
    paths, _ = save_comparison(planted_comparison(tmp_path, {}, batches=batches))
    assert {"batch_counterfact.png", "report.html"} <= {path.name for path in paths}
    assert "properties.png" not in {path.name for path in paths}


def test_what_could_not_be_written_is_counted_in_every_table(tmp_path: Path) -> None:
    refused = [{**scores(at, {"reliability_token_acc": 0.0}), "diagnostics": {"not_editable": "no"}} for at in range(2)]
    written = [scores(at + 2, {"reliability_token_acc": 1.0}, seconds=0.5) for at in range(2)]
    both = [*refused, *written]
    planted_comparison(tmp_path, {"a": both}, batches={"a": {4: both}}, points={"a": [point(4, both, [])]})
    hops = [{**one, "after": {"multi_hop": 0.0}} for one in both]
    found = with_hops(tmp_path, "a", hops)
    tables = [one.cells for one in shown_tables(found, scores_frame(found)) if one.title.endswith("edits: scores")]
    assert [table.loc[table["editor"] == "a", "not editable"].to_list() for table in tables] == [["2"]] * 4
    (batch,) = (one.cells for one in shown_tables(found, scores_frame(found)) if "batch edits: scores" in one.title)
    assert batch.loc[batch["editor"] == "a", "edit_seconds"].to_list() == ["0.5, 1 in all"]


def test_the_alarm_of_a_sequence_and_the_passages_of_its_text_are_in_its_table(whole: Comparison) -> None:
    (table,) = (one for one in shown_tables(whole, scores_frame(whole)) if "sequential edits: scores" in one.title)
    rows = table.cells.query("editor == 'good'")
    assert dict(zip(rows["edits"], rows["alarm"], strict=True)) == {2: "no", 4: "collapsed"}
    assert table.source.endswith("; perplexity over 12 of 12 passages")


def test_of_a_sequence_too_the_unedited_model_and_the_edits_that_were_made_stand_by_themselves(tmp_path: Path) -> None:
    refused = {**scores(0, {"reliability_token_acc": 0.0}), "diagnostics": {"not_editable": "no"}}
    cases = [refused, scores(1, {"reliability_token_acc": 1.0}, {"reliability_token_acc": 0.5})]
    found = planted_comparison(tmp_path, {}, points={"a": [point(2, cases, [])]})
    rows = scores_frame(found).query("score == 'reliability_token_acc'").set_index(["when", "cases"])["mean"]
    assert rows.to_dict() == {
        ("before", "all"): 50, ("after", "all"): 50, ("before", "editable"): 50, ("after", "editable"): 100
    }  # fmt: skip


def test_the_page_of_batches_alone_weighs_what_they_measured(tmp_path: Path) -> None:
    found = planted_comparison(tmp_path, {}, batches={"a": {4: of(0.5, 1)}, "b": {4: of(1.0, 1)}})
    assert report_data(found, [])["weights"] == {"batch": 1}


@pytest.mark.parametrize("text", ['{"edits"', "{}", '{"edits": 3}'])
def test_a_damaged_file_of_costs_is_named(tmp_path: Path, text: str) -> None:
    planted_comparison(tmp_path, {"a": of(1, 1)}, costs={"a": COST})
    (tmp_path / "costs/a.json").write_text(text, encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"a\.json holds costs of another version"):
        read_comparison(tmp_path)


def test_a_damaged_comparison_is_named(tmp_path: Path) -> None:
    planted_comparison(tmp_path, {"a": of(1, 1)})
    (tmp_path / "comparison.json").write_text('{"editors": {}}', encoding="utf-8")
    with pytest.raises(FileFormatError, match="comparison.json holds a comparison of another version: 'left_out'"):
        read_comparison(tmp_path)


def test_a_comparison_cut_short_is_said_to_be_damaged(tmp_path: Path) -> None:
    planted_comparison(tmp_path, {"a": of(1, 1)})
    path = tmp_path / "comparison.json"
    path.write_text(path.read_text(encoding="utf-8")[:20], encoding="utf-8")
    with pytest.raises(FileFormatError, match="comparison.json holds a comparison of another version or is damaged"):
        read_comparison(tmp_path)


def test_no_name_in_the_figure_of_costs_stands_on_another_name_or_point(tmp_path: Path) -> None:
    editors = ("r-rome", "rome", "emmet", "memit", "alphaedit", "calinet", "t-patcher", "grace")
    found = planted_comparison(
        tmp_path, {name: of(0.9 + at / 400, 0.9, seconds=3 + at / 8) for at, name in enumerate(editors)}
    )
    figure = plot_costs(found, profile(found, resamples=20))
    assert figure is not None
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}
    marks = [axes.transData.transform(line.get_xydata()[0]) for line in axes.lines]
    assert set(boxes) == set(editors) and len(marks) == len(editors)
    assert not any(one.overlaps(other) for one, other in combinations(boxes.values(), 2))
    assert not any(box.contains(*mark) for box in boxes.values() for mark in marks)


def test_the_figure_of_costs_takes_the_seconds_that_were_measured_alone_where_all_have_them(tmp_path: Path) -> None:
    editors = {name: of(0.9, 0.9, seconds=5.0) for name in ("rome", "memit")}

    def drawn(folder: Path, costs: dict) -> tuple[list[float], str]:
        found = planted_comparison(folder, editors, costs=costs)
        (axes,) = plot_costs(found, profile(found, resamples=20)).axes
        return [float(line.get_xdata()[0]) for line in axes.lines], axes.get_xlabel()

    alone = {"rome": {**COST, "edit_seconds": 2.0}, "memit": {**COST, "edit_seconds": 3.0}}
    assert drawn(tmp_path / "all", alone) == ([3.0, 2.0], "seconds an edit (median; made alone)")
    seconds, said = drawn(tmp_path / "one", {"rome": alone["rome"]})
    assert seconds == [5.0, 5.0] and "a share, where computed at once" in said


def test_each_way_of_asking_for_several_hops_has_an_unedited_model_of_its_own(tmp_path: Path) -> None:
    def asked(before: float, n: int):
        return [scores(at, {"multi_hop": 0.5}, {"multi_hop": before}) for at in range(n)]

    frame = pd.DataFrame(
        [(editor, "multi-hop", "before", "multi_hop", 100 * value, 0.0, 3, 1) for editor, value in (("a", 0), ("b", 1))]
        + [(editor, "multi-hop", "after", "multi_hop", 50.0, 0.0, 3, 1) for editor in "ab"],
        columns=["editor", "protocol", "when", "score", "mean", "half_width", "n", "edits"],
    )
    table = _wide(frame, ("multi_hop",))
    assert table is not None
    assert dict(zip(table["editor"], table["multi_hop"], strict=True)) == {
        "unedited, as a asks": "0.0", "unedited, as b asks": "100.0", "a": "50.0", "b": "50.0"
    }  # fmt: skip
    single = planted_comparison(tmp_path, {"a": asked(0, 2), "b": asked(1, 3)})  # the first one is unfinished
    (shown, *_) = shown_tables(single, scores_frame(single))
    assert shown.cells["multi_hop"].to_list()[0] == "100.0"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(1.7, 5.9, [2, 5]), (0.05, 30, [0.1, 1, 10]), (0.6, 1.7, [0.6, 0.7, 0.8, 0.9, 1]), (3.1, 3.3, [3.2])],
)
def test_a_logarithmic_axis_always_has_a_tick(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.99, 1.13, [1, 1.05, 1.1]),
        (0.9, 2.3, [1, 1.5, 2]),
        (0.8, 25, [1, 1.5, 2, 3, 5, 10]),
        (1, 1e4, [1, 10, 100, 1000, 10000]),
        (0.99999, 1.00001, [1]),
    ],
)
def test_a_ratio_is_read_off_whether_it_grows_by_a_tenth_or_explodes(low: float, high: float, ticks: list) -> None:
    assert ratio_ticks(low, high) == ticks


def test_the_unedited_model_stands_first_and_editors_follow(whole: Comparison) -> None:
    shown = {one.title: one.cells for one in shown_tables(whole, scores_frame(whole))}
    table = shown["counterfact, single edits: scores"]
    assert list(table["editor"]) == ["unedited", "copies", "good", "shouts"]
    assert list(table["reliability_token_acc"]) == ["25.0", "0.0", "90.0", "100.0"]
    assert list(table["edit_seconds"])[1] == "1 (1 to 1)"
    assert "reliability_tf_exact" in shown["counterfact, single edits: whole answers"]


def test_cases_that_could_not_be_edited_are_counted_both_ways(tmp_path: Path) -> None:
    refused = {**scores(1, {"reliability_token_acc": 0.0}), "diagnostics": {"not_editable": "no subject"}}
    found = planted_comparison(tmp_path, {"a": [scores(0, {"reliability_token_acc": 1.0}), refused]})
    rows = scores_frame(found).query("when == 'after'").set_index("cases")
    assert rows["mean"].to_dict() == {"all": 50, "editable": 100} and rows["n"].to_dict() == {"all": 2, "editable": 1}
    assert list(shown_tables(found, scores_frame(found))[0].cells["not editable"]) == ["", "1"]


def test_there_is_a_record_for_each_case_edit_count_and_editor(whole: Comparison, page: Path) -> None:
    records = [json.loads(line) for line in page.with_name("records.jsonl").read_text("utf-8").splitlines()]
    assert len(records) == 3 * (4 + (1 + 4) + (2 + 4 + 1))
    (fixed,) = [one for one in records if one["fixed"] and one["editor"] == "good"]
    assert (fixed["protocol"], fixed["edits"], fixed["after"]) == ("sequential", 4, {"specificity_accuracy": 0.7})
    single = [one for one in records if one["protocol"] == "single" and one["editor"] == "good"]
    assert [one["case_id"] for one in single] == ["0", "1", "2", "3"] and single[0]["after"][
        "locality_agreement"
    ] == 0.8


def test_the_page_needs_no_network_and_no_text_can_end_its_script(page: Path) -> None:
    text = page.read_text("utf-8")
    own = Elements(re.sub(r"<script>.*?</script>", "", text, flags=re.S))
    asked = [value for _, attributes in own.tags for name, value in attributes.items() if name in ("src", "href")]
    assert asked == ["data:,"] and not re.search(r"https?://|@import|url\((?!data:)", text)
    assert "<b>untrained" not in text
    (numbers,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    about = json.loads(numbers)
    values = {one["name"]: one["draws"]["good"][0] / UNIT for one in about["properties"]}
    assert values["reliability"] == 0.9 and values["locality"] == 0.8 and about["not_measured"][0] == "generalization"


def order(shown: Elements) -> list[str | None]:
    return [attributes["data-editor"] for _, attributes in shown.tags if "data-editor" in attributes]


def test_the_browser_ranks_by_the_weights_of_the_address_and_of_the_sliders(whole: Comparison, page: Path) -> None:
    shown = in_browser(page, "#reliability=3,locality=1")
    asked = recommend(whole, {"reliability": 3, "locality": 1}, resamples=20)
    assert order(shown) == [one.editor for one in asked.ranked] == ["good", "shouts", "copies"]
    assert "87.5" in shown.texts["ranking"] and "first 100 %" in shown.texts["ranking"]
    script = "const s = at('weight-reliability'); s.value = 0; s.oninput();"
    assert order(in_browser(page, "#reliability=1,locality=1", script)) == ["copies", "good", "shouts"]


def test_one_case_has_no_interval_in_the_browser(tmp_path: Path) -> None:
    alone = planted_comparison(tmp_path, {"good": [scores(0, {"reliability_token_acc": 0.75})]})
    shown = in_browser(save_comparison(alone)[0][-1], "#reliability=1")
    (row,) = [attributes for _, attributes in shown.tags if "data-editor" in attributes]
    assert row["title"] == "good: 75.0" and "first" not in shown.texts["ranking"]


def test_the_browser_shows_tables_figures_reasons_and_definitions(page: Path) -> None:
    shown = in_browser(page)
    assert sum(tag == "img" for tag, _ in shown.tags) == 4
    assert "</script><b>untrained</b>" in shown.texts["left"] and "1 left out" in shown.texts["left-title"]
    assert "locality_agreement" in shown.texts["definitions"] and "Not measured here" in shown.texts["unmeasured"]
    script = "[...document.querySelectorAll('th button')].find((one) => one.textContent === 'edits').click();"
    pressed = [attributes for _, attributes in in_browser(page, "", script).tags if "aria-sort" in attributes]
    assert [attributes["aria-sort"] for attributes in pressed] == ["descending"]
