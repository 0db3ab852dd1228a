"""What benchmarks/results.py packs is the comparison again, without the data's words; all_editors.py tells it."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from all_editors import FILES, MODELS, overview, read_results, tables
from compared import planted_comparison, point, scores
from differences import differences
from editor_figures import plot_course, plot_singles
from results import finished_scores, main, packed

from editing.comparison import read_comparison, scores_frame
from editing.errors import EvaluationError


def test_a_packed_comparison_is_read_again_and_holds_no_word_of_the_data(tmp_path) -> None:
    told = {"subject": "Lyon", "new": "Manila", "steps": 8, "loss": 0.5}
    failed = {"not_editable": "'Lyon' is asked to become both"}
    single = [scores(n, {"ES": n / 2, "PS": 0.5}) | {"diagnostics": told} for n in range(2)]
    single += [scores(2, {"ES": 0.0, "PS": 0.0}) | {"diagnostics": failed}]
    points = [point(k, [scores(n, {"ES": 1.0}) | {"diagnostics": told} for n in range(k)], [], 1.2) for k in (1, 2)]
    folder = tmp_path / "here" / "tiny"
    before = planted_comparison(folder, {"rome": single}, points={"rome": points})
    for table in folder.glob("runs/*/*/*"):
        (table / "table.tex").touch()
    steps = [{"edits": 1, "reason": "", "diagnostics": [told | {"rule": "covered"}]}]
    steps += [{"edits": 2, "reason": "'Lyon' is asked to become both", "diagnostics": []}]
    where = folder / "runs/counterfact/sequential/rome/steps.jsonl"
    where.write_text("".join(f"{json.dumps(one)}\n" for one in steps), encoding="utf-8")
    archive = packed([folder])
    assert archive == packed([folder])
    assert not any(word in archive for word in (b"Lyon", b"Manila"))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 has it
        tar.extractall(tmp_path / "there")
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


def test_comparisons_that_have_just_begun_are_left_out(tmp_path, monkeypatch, capsys) -> None:
    for name in ("done", "begun"):
        planted_comparison(tmp_path / name, {"rome": [scores(0, {"ES": 1.0})]})
    (tmp_path / "done/runs/counterfact/single/rome/table.tex").touch()
    words = ["results.py", "tiny", "--out", str(tmp_path / "out"), str(tmp_path / "begun")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        main()
    assert "nothing in these folders is finished" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*words, str(tmp_path / "done")])
    main()
    written = pd.read_csv(tmp_path / "out" / "tiny.csv.gz")
    assert len(written) == len(finished_scores(tmp_path / "done")) > 0


def test_unfinished_evaluations_are_left_out(tmp_path) -> None:
    folder = tmp_path / "tiny"
    planted_comparison(folder, {name: [scores(0, {"ES": 1.0})] for name in ("rome", "memit")})
    (folder / "runs/counterfact/single/rome/table.tex").touch()
    with tarfile.open(fileobj=io.BytesIO(packed([folder]))) as tar:
        names = tar.getnames()
    assert names == ["tiny/comparison.json"] + [
        f"tiny/runs/counterfact/single/rome/{name}" for name in ("manifest.json", "cases.jsonl", "table.tex")
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
    rows = [*rows, ("rome", "before", 10, "ES", 20.0, 2.5)]
    title, about, table, *_ = tables(results(tmp_path, rows, "sequential"))
    assert about == "SmolLM2-135M, zsre.eval.dev, first 9 of 20:"
    assert title == "## zsRE's true answers: edits one after another"
    assert table.splitlines() == [
        "| editor | score | 1 edit | 10 edits |",
        "| --- | --- | --- | --- |",
        "| unedited | ES |  | 20.0 ± 2.5 |",
        "| ROME | ES | 89.0 ± 1.5 | 80.0 ± 1.5 |",
        "| ROME | PS | 79.0 ± 1.5 | 70.0 ± 1.5 |",
    ]


def test_a_figure_of_single_edits_has_a_mark_for_each_model_beside_its_editor_and_a_line_for_the_unedited(
    tmp_path,
) -> None:
    rows = [(editor, when, 1, "S", mean, 4.0) for editor, mean in (("ft", 60.0), ("memit", 90.0), ("my-own", 40.0))
            for when, mean in (("before", 25.0), ("after", mean))]  # fmt: skip
    frame = results(tmp_path, rows)
    first, second = sorted(set(frame["model"]))
    (panel,) = plot_singles(frame).axes
    marks = {(round(float(line.get_ydata()[0])), line.get_fillstyle()): float(line.get_xdata()[0])
             for line in panel.lines if line.get_marker() == "o"}  # fmt: skip
    bars = {tuple(map(float, line.get_xdata())) for line in panel.lines if line.get_marker() != "o"}
    assert [label.get_text() for label in panel.get_yticklabels()] == ["MEMIT", "FT", "my-own"]
    smol, other = {"SmolLM2-135M": 1, "other": 0.5}[first], {"SmolLM2-135M": 1, "other": 0.5}[second]
    assert marks == {(row, fill): mean * part for row, mean in enumerate((90.0, 60.0, 40.0))
                     for fill, part in (("full", smol), ("none", other))}  # fmt: skip
    assert bars == {(25.0, 25.0), (12.5, 12.5), (86.0, 94.0), (56.0, 64.0), (36.0, 44.0), (41.0, 49.0), (26.0, 34.0),
                    (16.0, 24.0)}  # fmt: skip


def test_a_figure_of_single_edits_refuses_more_models_than_it_can_tell_apart() -> None:
    frame = pd.DataFrame({"model": list("ABCDE"), "key": "ft", "editor": "FT", "score": "S", "when": "after",
                          "mean": 1.0, "half_width": 0.0})  # fmt: skip
    with pytest.raises(ValueError, match="5 models; a figure holds 4"):
        plot_singles(frame)
    (legend,) = plot_singles(frame.loc[frame["model"] != "E"]).legends
    assert len({handle.get_linestyle() + handle.get_fillstyle() for handle in legend.legend_handles}) > 4


def test_an_editor_has_one_colour_in_every_figure(tmp_path) -> None:
    rows = [("rome", "after", edits, "reliability_token_acc", 90.0, 0.1) for edits in (10, 30)]
    alone = results(tmp_path, rows, "sequential")
    beside = results(tmp_path, [*rows, ("memit", "after", 10, "reliability_token_acc", 80.0, 0.1)], "sequential")
    colours = [
        {line.get_color() for line in plot_course(frame, "sequential").axes[0].lines if 80 < line.get_ydata()[0] <= 90}
        for frame in (alone.query("model != 'other'"), beside.query("model != 'other'"))
    ]
    assert len(colours[0]) == 1 and colours[0] == colours[1]


def test_a_figure_of_a_sequence_has_a_row_a_score_and_a_column_a_model_and_leaves_the_single_edit_out(tmp_path) -> None:
    means = {"reliability_token_acc": 9.0, "perplexity_ratio": 0.1}
    rows = [("rome", "after", edits, score, mean * edits, 0.1) for edits in (1, 10, 20)
            for score, mean in means.items()]  # fmt: skip
    figure = plot_course(results(tmp_path, rows, "sequential"), "sequential")
    curves = {tuple(map(float, line.get_ydata())) for panel in figure.axes for line in panel.lines}
    assert curves == {(90.0, 180.0), (45.0, 90.0), (1.0, 2.0), (0.5, 1.0)}
    assert figure.axes[-1].get_xlabel() == "edits made"
    assert {panel.get_title() for panel in figure.axes[:2]} == {"SmolLM2-135M", "other"}


def test_a_ruined_model_does_not_flatten_the_other_curves(tmp_path) -> None:
    rows = [("rome", "after", 10, "perplexity_ratio", 1.1, 0.0), ("mend", "after", 10, "perplexity_ratio", 1e9, 0.0)]
    (panel, _) = plot_course(results(tmp_path, rows, "sequential"), "sequential").axes
    assert sorted(float(line.get_ydata()[0]) for line in panel.lines) == [1.1, 10.0] and panel.get_ylim()[1] < 20
    assert panel.get_yticklabels()[-1].get_text() == "10+"


@pytest.mark.parametrize(("grown", "top"), [((1.1, 10.0), "10"), ((20.0, 1e9), "10+"), ((11.0, 11.0), "10+")])
def test_the_last_tick_of_perplexity_says_whether_curves_were_cut_there(tmp_path, grown, top) -> None:
    rows = [
        (editor, "after", 10, "perplexity_ratio", ratio, 0.0)
        for editor, ratio in zip(("rome", "mend"), grown, strict=True)
    ]
    frame = results(tmp_path, rows, "sequential")
    (panel,) = plot_course(frame.loc[frame["model"] != "other"], "sequential").axes
    low, high = panel.get_ylim()
    shown = [label.get_text() for place, label in zip(panel.get_yticks(), panel.get_yticklabels(), strict=True)
             if low <= place <= high]  # fmt: skip
    assert shown[-1] == top


def test_a_figure_of_batches_has_the_unedited_model_where_it_was_asked(tmp_path) -> None:
    rows = [
        ("rome", when, edits, "ES", mean, 0.1) for edits in (10, 20) for when, mean in (("before", 5), ("after", 8))
    ]
    rows = [(*row[:3], "reliability_token_acc", *row[4:]) for row in rows]
    figure = plot_course(results(tmp_path, rows, "batch"), "batch")
    curves = sorted(tuple(map(float, line.get_ydata())) for line in figure.axes[0].lines)
    assert len(curves) == 2 and curves[0] < curves[1]
    assert [text.get_text() for text in figure.legends[0].texts] == ["ROME", "unedited"]


def test_differences_are_paired_and_of_whole_facts_where_these_are_told(tmp_path) -> None:
    def single(*values: float):
        return [scores(n, {"ES": value}, {"ES": 0.0}) for n, value in enumerate(values)]

    found = planted_comparison(tmp_path, {"good": single(1, 1, 1, 0), "poor": single(1, 0, 0, 0)})
    (row,) = differences(found, "good", "poor")
    about = {"data": "counterfact", "protocol": "single", "edits": 1, "score": "ES", "mean": 50.0, "n": 4}
    assert {name: row[name] for name in about} == about and row["low"] < 50 < row["high"]
    (alike,) = differences(found, "good", "poor", {"0": "a", "1": "a", "2": "b", "3": "b"})
    assert (alike["mean"], alike["low"], alike["high"]) == (50, 50, 50)  # each fact differs by a half
    (base,) = differences(found, "good", "unedited")
    assert base["mean"] == 75
    with pytest.raises(EvaluationError, match="no other. Choose from good, poor"):
        list(differences(found, "good", "other"))
    with pytest.raises(EvaluationError, match='"unedited" goes second: write good unedited'):
        list(differences(found, "unedited", "good"))


def test_the_second_editor_may_stand_in_another_comparison_of_the_model(tmp_path) -> None:
    def alone(name: str, value: float):
        return planted_comparison(tmp_path / name, {name: [scores(n, {"ES": value}) for n in range(3)]})

    one, other = alone("good", 1.0), alone("poor", 0.25)
    (row,) = differences(one, "good", "poor", other=other)
    assert (row["mean"], row["n"]) == (75, 3)
    stranger = dataclasses.replace(other, about={**other.about, "model": {"fingerprint": "0" * 64}})
    with pytest.raises(EvaluationError, match="are of different models"):
        list(differences(one, "good", "poor", other=stranger))


def test_of_a_sequence_the_fixed_questions_differ_too(tmp_path) -> None:
    def sequence(value: float):
        cases = [scores(n, {"ES": value}) for n in range(3)]
        return [point(3, cases, [scores(n, {"NS": value / 2}) for n in range(2)])]

    found = planted_comparison(tmp_path, {}, points={"good": sequence(1.0), "poor": sequence(0.0)})
    assert {row["score"]: (row["mean"], row["n"]) for row in differences(found, "good", "poor")} == {
        "ES": (100, 3), "NS": (50, 2)
    }  # fmt: skip


def test_an_unknown_file_keeps_its_own_name_in_the_tables(tmp_path) -> None:
    frame = results(tmp_path, [("rome", "after", 1, "ES", 90.0, 0.0)])
    title, *_ = tables(frame.assign(data="mine", protocol="odd"))
    assert title == "## mine: odd"


def test_the_tables_and_the_readme_tell_what_is_packed() -> None:
    root = Path(__file__).parents[1]
    frame = read_results(root / "benchmarks/results")
    assert set(frame["data"]) <= set(FILES) and set(frame["model"]) <= set(MODELS.values())
    told = (root / "benchmarks/results/README.md").read_text(encoding="utf-8")
    assert told.endswith("\n\n".join([overview(frame), *tables(frame)]) + "\n")
    assert overview(frame).split("\n\n")[-1] in (root / "README.md").read_text(encoding="utf-8")


def test_the_overview_has_the_models_of_a_cell_side_by_side_and_a_dash_where_one_is_missing() -> None:
    rows = [("ROME", "A", 80.0), ("ROME", "B", 60.0), ("FT", "B", 40.0)]
    frame = pd.DataFrame(rows, columns=["editor", "model", "mean"]).assign(
        data="portability.counterfact_locality", protocol="single", when="after", score="S"
    )
    heading, _, about, _, *lines = overview(frame).splitlines()
    assert heading == "## At a glance" and about == "Single edits, A / B, per cent; a dash: not run."
    cells = [line.split(" | ")[:2] for line in lines]
    assert cells[0] == ["| editor", "CounterFact: S"]
    assert cells[2:] == [["| unedited", ""], ["| ROME", "80 / 60"], ["| FT", "- / 40"]]
