"""A comparison by workers: the same bytes as one process, also when some of them are killed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from killing import Killer, actors_at_work, children
from test_comparison import records, results

import tracer
from editing.comparison import ComparisonPlan, compare, entrants, read_comparison
from editing.comparison.evaluating import Evaluating
from editing.comparison.notes import Notes
from editing.comparison.plan import Task, tasks
from editing.comparison.progress import shown_progress
from editing.comparison.unit import Unit, in_order, units_of
from editing.datasets.benchmarks import Benchmark
from editing.evaluation import Questions, read_benchmark
from editing.evaluation.lines import Lines

PLAN = ComparisonPlan(
    protocols=("single", "batch", "sequential"), sizes=(1, 3), questions=Questions(free=False), costs=False
)
# "slow" takes so many steps that there is time to kill a worker; mend is not trained, memprompt's text too long.
ENTRANTS = entrants(
    ["mend", "memprompt", "slow", "quick"],
    tables={"slow": {"editor": "ft", "steps": 200, "rate": 1e-6}, "quick": {"editor": "ft-m", "steps": 2}},
)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> tracer.LanguageModel:
    return tracer.load(model_folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Benchmark]:
    path = tmp_path_factory.mktemp("data") / "counterfact.json"
    path.write_text(json.dumps(records()), encoding="utf-8")
    return {"counterfact": read_benchmark(path)}


@pytest.fixture(scope="module")
def serial(model, data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("serial")
    compare(model, ENTRANTS, data, folder, plan=PLAN, threads=1, progress=False)
    return results(folder)


def first_case(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.glob("runs/*/*/slow/[cbs]*.jsonl"))


def test_two_workers_that_are_interrupted_and_then_killed_write_the_bytes_of_one_process(
    model, data, serial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> None:
        compare(model, ENTRANTS, data, tmp_path, plan=PLAN, workers=2, threads=1, progress=False)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Notes, "note", interrupted)
        run()
    assert not children()
    killer = Killer(lambda: first_case(tmp_path), children)
    killer.start()
    run()
    killer.join()
    assert killer.killed and not children()
    assert results(tmp_path) == serial


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_ray_workers_of_which_one_is_killed_write_the_bytes_of_one_process(model, data, serial, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    killer = Killer(lambda: first_case(tmp_path), actors_at_work)
    killer.start()
    options = {"workers": 2, "backend": "ray", "threads": 1}
    compare(model, ENTRANTS, data, tmp_path, plan=PLAN, **options, progress=False)
    killer.join()
    assert killer.killed
    assert results(tmp_path) == serial


def test_a_unit_that_kills_every_worker_is_left_out_and_the_others_stay(model, data, tmp_path: Path) -> None:
    compare(model, ENTRANTS[-1:], data, tmp_path, plan=PLAN, threads=1, progress=False)
    notes = Notes(tmp_path, model)
    (entrant,) = entrants(["ft"])
    (unit, *_) = units_of(entrant, tasks(entrant, data, tmp_path, PLAN, notes.fingerprint), costs=True)
    notes.begin([entrant], [unit])
    notes.note(unit, Evaluating(tmp_path, data, PLAN, notes.fingerprint, workers=2).given_up(unit, "it died"))
    found = read_comparison(tmp_path)
    assert found.about["left_out"] == [{"editor": "ft", "what": "counterfact, single", "reason": "it died"}]
    assert found.editors == ["quick"]


def test_costs_come_first_and_then_the_longest_units_but_in_one_process_an_editor_after_the_other(tmp_path) -> None:
    def task(edits: int) -> Task:
        return Task("counterfact", "single", tmp_path, {}, edits)

    one, other = entrants(["rome", "ft"])
    units = [*units_of(one, [task(1), task(3)], costs=True), *units_of(other, [task(2), task(9)], costs=False)]
    assert [(unit.edits, unit.costs) for unit in in_order(units, 2)] == [(1, True), (9, False), (3, False), (2, False)]
    assert in_order(units, 0) == units
    assert units_of(one, [], costs=False) == [] and units_of(one, [], costs=True) == [Unit(one, None, True)]


def test_progress_is_counted_over_the_edits_of_all_folders_also_of_what_an_earlier_run_made(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editing.comparison.progress.EVERY", 0.01)
    sizes = {"single": 5, "batch": 11, "sequential": 40}
    units = [
        Unit(entrants(["ft"])[0], Task("counterfact", protocol, tmp_path / protocol, {}, edits))
        for protocol, edits in sizes.items()
    ]
    Lines(tmp_path / "single" / "cases.jsonl").append([{"case_id": "0"}, {"case_id": "1"}])
    Lines(tmp_path / "batch" / "batches.jsonl").append([{"size": 1}])
    with shown_progress(units, True) as done:
        assert "3/56" in capsys.readouterr().err
        Lines(tmp_path / "sequential" / "steps.jsonl").append([{"edits": 10}, {"edits": 20}])
        until = time.monotonic() + 10
        while "23/56" not in (shown := capsys.readouterr().err) and time.monotonic() < until:
            time.sleep(0.15)  # tqdm draws ten times a second at most
        assert "23/56" in shown
        for at in range(3):
            done(at)
