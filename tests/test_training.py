"""`editing train`: what it leaves is what `editing evaluate` takes, whichever editor it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted import flat_records
from typer.testing import CliRunner

import tracer
from editing import SERAC, plot_training
from editing.cli import app
from editing.editors import editor_named
from editing.memory import ScopedFacts, bundled_facts, load_scope
from editing.memory.scope_training import ScopeTraining, train_scope
from editing.training.checkpoint import check_same_training
from editing.training.result import TrainingResult
from tracer.errors import FileFormatError

FACTS = ScopedFacts("some", bundled_facts().facts[:150])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A flat CounterFact file."""
    path = tmp_path / "flat.json"
    path.write_text(json.dumps(flat_records(120)))
    return path


@pytest.mark.parametrize("text", ['{"seed": ', "[]"])
def test_a_damaged_record_of_a_training_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "training.json").write_text(text, encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"training\.json"):
        check_same_training(tmp_path, {"seed": 0}, {})


def test_serac_is_trained_goes_on_and_is_evaluated_by_its_folder(
    data: Path, model_folder: Path, tmp_path: Path
) -> None:
    out, scored = tmp_path / "serac", tmp_path / "scored.json"
    scored.write_text(json.dumps(json.loads(data.read_text())[:2]))
    command = [
        "train",
        "--editor",
        "serac",
        "--data",
        str(data),
        "--out",
        str(out),
        "--without",
        str(scored),
        "--quiet",
    ]
    sizes = ["--steps", "20", "--batch", "8", "--every", "10", "--held-out", "20", "--json"]
    found = [json.loads(CliRunner().invoke(app, [*command, *sizes]).stdout) for _ in range(2)]
    assert all(one.pop("peak_bytes") > 2**20 for one in found)
    assert found[0] == found[1], "the second run finds the first one's end"
    assert found[0]["steps"] == 20 and found[0]["best"]["n_inside"] == found[0]["best"]["n_outside"] > 10
    about = json.loads((out / "training.json").read_text())
    subjects = {name: set(of) for name, of in about["subjects"].items()}
    assert not subjects["training"] & subjects["held_out"]
    assert not {record["subject"] for record in json.loads(scored.read_text())} & set.union(*subjects.values())
    model = tracer.load(model_folder, check=False)
    made = editor_named("serac", model, checkpoint=str(out), threshold=0.4)
    assert made == SERAC(scope=made.scope, threshold=0.4) and made.scope.digest == load_scope(out).digest
    evaluate = ["evaluate", "--editor", "serac", "--set", f"checkpoint={out}", "--data", str(scored), "--no-free"]
    evaluate += ["--set", "context={edit}. {query}"]  # the toy's context is short
    ran = CliRunner().invoke(app, [*evaluate, "--model", str(model_folder), "--out", str(tmp_path / "runs"), "--json"])
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "runs" / "table.md").is_file()


def test_an_option_of_another_training_is_refused(data: Path, tmp_path: Path) -> None:
    command = ["train", "--data", str(data), "--out", str(tmp_path / "out")]
    for editor, option in (("serac", "--own-words"), ("serac", "--blocks"), ("mend", "--retriever")):
        ran = CliRunner().invoke(app, [*command, "--editor", editor, option, "1"])
        assert ran.exit_code == 2 and f"{option}: the training of {editor.upper()}" in ran.output
    ran = CliRunner().invoke(app, [*command, "--editor", "serac", "--without", str(data)])
    assert ran.exit_code == 2 and "no fact to train on" in ran.output
    assert not (tmp_path / "out").exists()


def test_serac_learns_from_several_files_and_the_others_from_one(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "zsre.json"
    records = [
        {
            "subject": f"Town {n}",
            "src": f"Where is Town {n}?",
            "rephrase": f"What land holds Town {n}?",
            "answers": ["Spain"],
        }
        | {"alt": "Peru", "loc": f"nq question: who won in {1900 + n}", "loc_ans": "nobody"}
        for n in range(60)
    ]
    other.write_text(json.dumps(records))
    both, without = ["--data", str(data), "--data", str(other)], ["--without", str(other)]
    command = ["train", *both, "--out", str(tmp_path / "out"), "--n", "50", "--quiet"]
    ran = CliRunner().invoke(app, [*command, "--editor", "mend"])
    assert ran.exit_code == 2 and "MEND trains on one file, and here are 2. Give --data once." in ran.output
    ran = CliRunner().invoke(app, [*command, "--editor", "serac", *without])
    assert ran.exit_code == 2 and "zsre.json has no fact to train on" in ran.output
    assert not (tmp_path / "out").exists()
    quick = ["--steps", "2", "--batch", "8", "--every", "1", "--held-out", "20"]
    ran = CliRunner().invoke(app, [*command, "--editor", "serac", *quick])
    assert ran.exit_code == 0, ran.output
    about = json.loads((tmp_path / "out" / "training.json").read_text())
    subjects = set(about["subjects"]["training"]) | set(about["subjects"]["held_out"])
    towns = {name for name in subjects if name.startswith("Town")}
    assert len(towns) == 50 and len(subjects - towns) > 30 and "flat.json + zsre.json (n=100" in about["data"]


def test_the_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    quick = ScopeTraining(steps=2, every=1, batch=4, rank=2)
    train_scope("hashed-words", FACTS, quick, folder=tmp_path)
    with pytest.raises(ValueError, match=r"holds another training \(seed: 0 there, 1 now\)"):
        train_scope("hashed-words", FACTS, quick, seed=1, folder=tmp_path)


@pytest.mark.parametrize("left", [None, "", '{"step": 2', '{"step": 1}'], ids=["lost", "empty", "cut", "short"])
def test_a_damaged_curve_is_named(tmp_path: Path, left: str | None) -> None:
    quick = ScopeTraining(steps=2, every=1, batch=4, rank=2)
    train_scope("hashed-words", FACTS, quick, folder=tmp_path)
    (tmp_path / "curve.jsonl").unlink()
    if left is not None:
        (tmp_path / "curve.jsonl").write_text(left, encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"curve\.jsonl is lost or damaged .* Remove state\.safetensors"):
        train_scope("hashed-words", FACTS, quick, folder=tmp_path)
    (tmp_path / "state.safetensors").unlink()
    assert len(train_scope("hashed-words", FACTS, quick, folder=tmp_path).result.curve) == 5


def test_what_a_killed_training_left_half_written_goes_and_what_is_lost_comes_back(tmp_path: Path) -> None:
    quick = ScopeTraining(steps=2, every=1, batch=4, rank=2)
    train_scope("hashed-words", FACTS, quick, folder=tmp_path)
    written = (tmp_path / "editor.safetensors").read_bytes()
    (tmp_path / "editor.safetensors").unlink()
    for name in (".state.safetensors.x1y2.safetensors", ".curve.jsonl.x1y2.jsonl", ".my.notes"):
        (tmp_path / name).touch()
    train_scope("hashed-words", FACTS, quick, folder=tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".my.notes"]
    assert (tmp_path / "editor.safetensors").read_bytes() == written


def test_the_figure_of_a_scope_shows_its_losses_and_shares() -> None:
    scope = train_scope("hashed-words", FACTS, ScopeTraining(steps=6, every=3, batch=8, rank=2))
    assert scope.result is not None and scope.result.steps == 6
    figure = plot_training(scope.result)
    steps = [record for record in scope.result.curve if not record.get("validation")]
    looks = [record for record in scope.result.curve if record.get("validation")]
    assert (len(steps), len(looks)) == (6, 3)
    for axes, name in zip(figure.axes[:2], ("inside_loss", "outside_loss"), strict=True):
        thin, dots = (line.get_ydata().tolist() for line in axes.lines[:2])
        assert thin == [record[name] for record in steps] and dots == [record[name] for record in looks]
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert labels == ["let in", "kept out"]


def test_the_interval_of_a_share_is_wilsons_so_that_all_of_few_is_not_certain() -> None:
    step = {"step": 1, "edit_loss": 1.0, "drift": 0.1}
    looks = [step | {"edits_taken": 1.0, "others_taken": 0.5, "n": 10, "validation": True}]
    result = TrainingResult(1, looks[0], early=False, seconds=1.0, peak_bytes=0, skipped=0, curve=(step, *looks))
    taken, others = (bars.lines[2][0].get_segments()[0][:, 1] for bars in plot_training(result).axes[2].containers)
    assert taken == pytest.approx([72.2, 100.0], abs=0.1) and others == pytest.approx([23.7, 76.3], abs=0.1)


def test_a_network_that_has_not_learned_yet_does_not_stretch_the_axis_of_its_drift() -> None:
    drifts = [1e-13, 1e-9, 0.4, 0.2, 0.3, 0.1]
    steps = [{"step": step, "edit_loss": 1.0, "drift": drift} for step, drift in enumerate(drifts, start=1)]
    held = {"edit_loss": 1.0, "edits_taken": 0.5, "others_taken": 0.5, "n": 8, "validation": True}
    looks = [held | {"step": step, "drift": drift} for step, drift in ((3, 5e-4), (6, 0.2))]
    result = TrainingResult(6, looks[1], early=False, seconds=1.0, peak_bytes=0, skipped=0, curve=(*steps, *looks))
    figure = plot_training(result)
    figure.canvas.draw()
    axes = figure.axes[1]
    low, high = axes.get_ylim()
    assert low == pytest.approx(0.8 * 5e-4) and high > 0.4
    below = axes.get_window_extent().y0
    legends = [each.get_legend().get_window_extent() for each in figure.axes]
    assert all(legend.y1 < below for legend in legends)
