"""What benchmarks/results.py packs is the comparison again, without the data's words; all_editors.py tells it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from all_editors import FILES, MODELS, overview, read_results, tables
from compared import planted_comparison, point, scores
from editor_figures import plot_course, plot_singles
from results import finished_scores, packed

from editing.comparison import read_comparison, scores_frame


def test_a_packed_comparison_is_read_again_and_holds_no_word_of_the_data(tmp_path) -> None:
    told = {"subject": "Lyon", "new": "Manila", "steps": 8, "loss": 0.5}
    failed = {"not_editable": "'Lyon' is asked to become both"}
    single = [scores(n, {"ES": n / 2, "PS": 0.5}) | {"diagnostics": told} for n in range(2)]
    single += [scores(2, {"ES": 0.0, "PS": 0.0}) | {"diagnostics": failed}]
    points = [point(k, [scores(n, {"ES": 1.0}) | {"diagnostics": told} for n in range(k)], [], 1.2) for k in (1, 2)]
    folder = tmp_path / "here" / "tiny"
    before = planted_comparison(folder, {"rome": single}, points={"rome": points})
    for table in folder.glob("runs/*/*/*"):
        (table / "table.csv").touch()
    steps = [{"edits": 1, "reason": "", "diagnostics": [told | {"rule": "covered"}]}]
    steps += [{"edits": 2, "reason": "'Lyon' is asked to become both", "diagnostics": []}]
    where = folder / "runs/counterfact/sequential/rome/steps.jsonl"
    where.write_text("".join(f"{json.dumps(one)}\n" for one in steps), encoding="utf-8")
    archive = packed([folder])
    assert archive == packed([folder])
    assert not any(word in archive for word in (b"Lyon", b"Manila"))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(tmp_path / "there", filter="data")
    kept = tmp_path / "there" / "tiny" / where.relative_to(folder)
    assert [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] == [
        {"edits": 1, "reason": "", "diagnostics": [{"steps": 8, "loss": 0.5, "rule": "covered"}]},
        {"edits": 2, "reason": "see a run", "diagnostics": []},
    ]
    after = read_comparison(tmp_path / "there" / "tiny")
    pd.testing.assert_frame_equal(scores_frame(after), scores_frame(before))
    (evaluation,) = [one for key, one in after.evaluations.items() if key[1] == "single"]
    assert evaluation.not_editable == 1
    assert [case.diagnostics for case in evaluation.cases[:2]] == [{"steps": 8, "loss": 0.5}] * 2


def test_unfinished_evaluations_are_left_out(tmp_path) -> None:
    folder = tmp_path / "tiny"
    planted_comparison(folder, {name: [scores(0, {"ES": 1.0})] for name in ("rome", "memit")})
    (folder / "runs/counterfact/single/rome/table.csv").touch()
    with tarfile.open(fileobj=io.BytesIO(packed([folder]))) as tar:
        names = tar.getnames()
    assert names == ["tiny/comparison.json"] + [
        f"tiny/runs/counterfact/single/rome/{name}" for name in ("manifest.json", "cases.jsonl")
    ]
    assert set(finished_scores(folder)["editor"]) == {"rome"}


def results(
    folder: Path, rows: Sequence[tuple[str, str, int, str, float, float]], protocol: str = "single"
) -> pd.DataFrame:
    """Results of two models, written and read again; rows of editor, when, edits, score, mean, half_width."""
    frame = pd.DataFrame(rows, columns=["editor", "when", "edits", "score", "mean", "half_width"])
    frame = frame.assign(data="zsre.eval.dev", protocol=protocol, cases="all", n=9, slice="first 9 of 20")
    frame.to_csv(folder / "smollm2.csv.gz", index=False)
    frame.assign(mean=frame["mean"] / 2).to_csv(folder / "other.csv.gz", index=False)
    return read_results(folder)


def test_the_tables_have_a_row_an_editor_in_the_order_of_editors_and_the_unedited_model_first(tmp_path) -> None:
    rows = [(editor, when, 1, "ES", mean, 0.0) for editor, mean in (("memit", 90.0), ("r-rome", 80.0))
            for when, mean in (("before", 25.0), ("after", mean))]  # fmt: skip
    title, *told = tables(results(tmp_path, rows))
    assert title == "## zsRE's true answers: each edit alone"
    models = dict(zip(told[::2], told[1::2], strict=True))
    (lines,) = (table.splitlines() for about, table in models.items() if about.startswith("SmolLM2-135M"))
    assert lines == ["| editor | ES |", "| --- | --- |", "| unedited | 25.0 |", "| r-ROME | 80.0 |", "| MEMIT | 90.0 |"]
    (lines,) = (table.splitlines() for about, table in models.items() if about.startswith("other"))
    assert lines[-1] == "| MEMIT | 45.0 |"


def test_of_a_sequence_every_score_has_a_row_and_every_number_of_edits_a_column(tmp_path) -> None:
    rows = [("rome", "after", edits, score, mean - edits, 1.5) for edits in (1, 10)
            for score, mean in (("ES", 90.0), ("PS", 80.0))]  # fmt: skip
    title, *_, about, table = tables(results(tmp_path, rows, "sequential"))
    assert about == "SmolLM2-135M, zsre.eval.dev, n = 9, first 9 of 20:"
    assert title == "## zsRE's true answers: edits one after another"
    assert table.splitlines() == [
        "| editor | score | 1 edits | 10 edits |",
        "| --- | --- | --- | --- |",
        "| ROME | ES | 89.0 ± 1.5 | 80.0 ± 1.5 |",
        "| ROME | PS | 79.0 ± 1.5 | 70.0 ± 1.5 |",
    ]


def test_a_figure_of_single_edits_has_a_mark_for_each_model_and_editor_at_its_mean(tmp_path) -> None:
    rows = [(editor, when, 1, "S", mean, 4.0) for editor, mean in (("memit", 90.0), ("ft", 60.0))
            for when, mean in (("before", 25.0), ("after", mean))]  # fmt: skip
    (panel,) = plot_singles(results(tmp_path, rows)).axes
    marks = {float(line.get_xdata()[0]) for line in panel.lines if line.get_marker() == "o"}
    bars = {tuple(map(float, line.get_xdata())) for line in panel.lines if len(line.get_xdata()) == 2}
    assert marks == {90.0, 60.0, 45.0, 30.0}
    assert {(86.0, 94.0), (56.0, 64.0), (41.0, 49.0), (26.0, 34.0)} <= bars
    assert [label.get_text() for label in panel.get_yticklabels()] == ["MEMIT", "FT"]


def test_a_figure_of_a_sequence_has_a_row_a_score_and_a_column_a_model(tmp_path) -> None:
    scores_there = {"reliability_token_acc": 90.0, "perplexity_ratio": 1.0}
    rows = [("rome", "after", edits, score, mean * edits, 0.1) for edits in (1, 10)
            for score, mean in scores_there.items()]  # fmt: skip
    figure = plot_course(results(tmp_path, rows, "sequential"), "sequential")
    curves = {tuple(map(float, line.get_ydata())) for panel in figure.axes for line in panel.lines}
    assert curves == {(90.0, 900.0), (45.0, 450.0), (1.0, 10.0), (0.5, 5.0)}
    assert figure.axes[-1].get_xlabel() == "edits made"
    assert {panel.get_title() for panel in figure.axes[:2]} == {"SmolLM2-135M", "other"}


def test_every_packed_file_and_model_is_named() -> None:
    frame = read_results(Path(__file__).parents[1] / "benchmarks/results")
    assert set(frame["data"]) <= set(FILES)
    assert set(frame["model"]) <= set(MODELS.values())


def test_the_overview_has_the_models_of_a_cell_side_by_side_and_a_dash_where_one_is_missing() -> None:
    rows = [("ROME", "A", 80.0), ("ROME", "B", 60.0), ("FT", "B", 40.0)]
    frame = pd.DataFrame(rows, columns=["editor", "model", "mean"]).assign(
        data="portability.counterfact_locality", protocol="single", when="after", score="S"
    )
    cells = [line.split(" | ")[:2] for line in overview(frame).splitlines()]
    assert cells[0] == ["| editor", "CounterFact: S"]
    assert cells[2:] == [["| unedited", ""], ["| ROME", "80 / 60"], ["| FT", "- / 40"]]
