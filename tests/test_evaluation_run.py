"""`editing evaluate`: what it leaves in a folder, and that a killed run ends with the same records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from planted import Refuses
from test_comparison import records
from typer.testing import CliRunner

from editing import ROME
from editing.cli import app
from editing.errors import EvaluationError
from editing.evaluation import Questions, read_benchmark
from editing.evaluation.run import evaluate
from tracer.errors import SiteError

TIMES = re.compile(r'"(\w*seconds)": [^,}]+')

RECORDS = {"single": "cases.jsonl", "batch": "batches.jsonl", "sequential": "checkpoints.jsonl"}
EDITOR = ["--editor", "r-rome", "--layer", "1", "--set", "steps=3", "--set", "context_plan=[]", "--set", "tokens=200"]

pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")  # three steps reach little


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps(records()), encoding="utf-8")
    return path


def run(data: Path, model: Path, out: Path, *more: str, code: int = 0) -> str:
    words = ["evaluate", "--data", data, "--model", model, "--out", out, "--no-free", "--text", "0", "--quiet", *more]
    told = CliRunner().invoke(app, [str(word) for word in [*words, *EDITOR]])
    assert told.exit_code == code, told.output
    return told.output


def records_of(folder: Path, protocol: str) -> list[str]:
    return TIMES.sub("", (folder / RECORDS[protocol]).read_text(encoding="utf-8")).splitlines()


def test_a_text_longer_than_the_context_is_named_before_anything_runs(data: Path, model_folder: Path, tmp_path) -> None:
    whole = records()
    whole[1]["neighborhood_prompts"] = ["go " * 600]
    data.write_text(json.dumps(whole), encoding="utf-8")
    told = run(data, model_folder, tmp_path / "out", code=2)
    assert re.search(rf"EvaluationError: Case {whole[1]['case_id']}, neighborhood: 'go go .* has \d+ tokens", told)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("cases*"))


def test_a_run_goes_on_with_the_threads_it_was_begun_with(data: Path, model_folder: Path, tmp_path: Path) -> None:
    other = torch.get_num_threads() + 1
    run(data, model_folder, tmp_path / "out", "--n", "1", "--threads", str(other))
    before = records_of(tmp_path / "out", "single")
    run(data, model_folder, tmp_path / "out", "--n", "1")
    assert records_of(tmp_path / "out", "single") == before and torch.get_num_threads() == other - 1
    told = run(data, model_folder, tmp_path / "out", "--n", "1", "--threads", str(other + 1), code=2)
    assert f"model.threads: {other} there, {other + 1} now" in told


@pytest.mark.parametrize("protocol", RECORDS)
def test_a_run_cut_off_in_a_line_goes_on_and_ends_with_the_same_records(
    data: Path, model_folder: Path, tmp_path: Path, protocol: str
) -> None:
    options = ["--protocol", protocol, "--batch", "1,3", "--checkpoints", "1,2,4"]
    told = run(data, model_folder, tmp_path / "whole", *options)
    assert "reliability" in told
    for name in ("table.csv", "table.md", "table.tex", "scores.png", "manifest.json"):
        assert (tmp_path / "whole" / name).stat().st_size > 100, name
    run(data, model_folder, tmp_path / "cut", *options)
    path = tmp_path / "cut" / RECORDS[protocol]
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][: len(lines[1]) // 2], encoding="utf-8")
    run(data, model_folder, tmp_path / "cut", *options)
    assert records_of(tmp_path / "cut", protocol) == records_of(tmp_path / "whole", protocol)


@pytest.mark.parametrize(
    ("options", "said"), [({"protocol": "bogus"}, "no protocol"), ({"protocol": "batch", "sizes": (9,)}, "no batches")]
)
def test_what_cannot_be_run_leaves_no_manifest_behind(toy_model, data, tmp_path, options: dict, said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        evaluate(toy_model, ROME(layer=1), read_benchmark(data), tmp_path / "out", progress=False, **options)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("protocol", RECORDS)
def test_a_run_in_which_nothing_could_be_edited_has_its_table_too(toy_model, data, tmp_path, protocol: str) -> None:
    options = {"protocol": protocol, "sizes": (2,), "questions": Questions(free=False, text=0), "progress": False}
    found = evaluate(toy_model, Refuses(), read_benchmark(data), tmp_path / "out", **options)
    paths = found.save()
    assert found.not_editable and all(path.stat().st_size > 100 for path in paths)
    after = found.table if "when" not in found.table else found.table.query("when == 'after'")
    assert set(after.query("score == 'reliability_token_acc'")["mean"]) == {0.0}


def test_a_folder_refuses_another_evaluation_and_says_what_differs(toy_model, data: Path, tmp_path: Path) -> None:
    editor = ROME(layer=1, steps=2, context_plan=(), tokens=200)
    options = {"questions": Questions(free=False, text=0), "progress": False}
    evaluate(toy_model, editor, read_benchmark(data, n=1), tmp_path / "out", **options)
    with pytest.raises(EvaluationError, match="holds another evaluation"):
        evaluate(toy_model, editor, read_benchmark(data, n=2), tmp_path / "out", **options)


@pytest.mark.parametrize("protocol", RECORDS)
def test_a_folder_whose_run_could_not_begin_takes_the_mended_one(toy_model, data, tmp_path, protocol: str) -> None:
    options = {"protocol": protocol, "sizes": (1,), "questions": Questions(free=False, text=0), "progress": False}
    quick = {"steps": 2, "context_plan": (), "tokens": 200}
    with pytest.raises(SiteError, match="Layer 99 is outside"):
        evaluate(toy_model, ROME(layer=99, **quick), read_benchmark(data, n=1), tmp_path / "out", **options)
    found = evaluate(toy_model, ROME(layer=1, **quick), read_benchmark(data, n=1), tmp_path / "out", **options)
    assert found.about["editor"]["layer"] == 1


def test_without_a_layer_and_without_a_fact_that_the_model_knows_a_layer_is_asked_for(
    data: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editing.located_layer.located_layer", lambda *_, **__: None)
    words = ["evaluate", "--data", data, "--model", model_folder, "--out", tmp_path / "out", "--editor", "memit"]
    told = CliRunner().invoke(app, list(map(str, words)))
    assert told.exit_code == 2 and "Which layer" in told.output
    monkeypatch.setattr("editing.located_layer.located_layer", lambda *_, **__: 1)
    settings = ["--set", "steps=2", "--set", "context_plan=[]", "--set", "tokens=200", "--no-free", "--text", "0"]
    told = CliRunner().invoke(app, [*map(str, words), *settings, "--n", "1"])
    assert told.exit_code == 0, told.output
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["editor"]["layers"] == [1]
