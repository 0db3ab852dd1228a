"""benchmarks/results.py: what it packs is the comparison again, without the data's words."""

from __future__ import annotations

import io
import json
import tarfile

import pandas as pd
from compared import planted_comparison, point, scores
from results import finished_scores, packed, tables

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


def test_the_tables_have_a_row_an_editor_and_the_unedited_model_first(tmp_path) -> None:
    found = planted_comparison(tmp_path, {"rome": [scores(0, {"ES": 1.0}, {"ES": 0.25})]})
    (table,) = tables(scores_frame(found))
    lines = table.splitlines()
    assert lines[0] == "counterfact, single; n = 1"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| editor", "| ---", "| unedited", "| rome"]
    assert "25.0" in lines[4] and "100" in lines[5]
