"""Workers of a study: the same bytes as one process, also when some of them are killed."""

from __future__ import annotations

import dataclasses
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from encoder_decoders import tiny_t5
from killing import Killer, actors_at_work, children, is_alive

import tracer
from tracer import Plan, Study, run_study
from tracer.errors import MissingPackageError, StudyError, WorkerError
from tracer.facts import bundled, spread_over_relations
from tracer.studies.batches import Tracing
from tracer.workers import Attempts, Recipe

FACTS = [dataclasses.replace(fact, answer=None) for fact in spread_over_relations(bundled())[:8]]
# The definition is slow: there is time to kill a worker while it traces.
PLAN = Plan(kinds=("mlp",), window=2, samples=2, engine="passes")


@pytest.fixture(scope="module")
def model(model_folder: Path) -> tracer.LanguageModel:
    return tracer.load(model_folder)


@pytest.fixture(scope="module")
def serial(model: tracer.LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(model, FACTS, tmp_path_factory.mktemp("serial") / "run", plan=PLAN, threads=1)


def test_a_model_with_hooks_is_not_loaded_by_workers(model: tracer.LanguageModel) -> None:
    handle = model.torch.get_input_embeddings().register_forward_hook(lambda *_: None)
    with pytest.raises(WorkerError, match="carries a hook on .* write workers=0"):
        Recipe.of(model, 1)
    handle.remove()
    assert Recipe.of(model, 1).name == model.name


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_workers_of_which_one_is_killed_write_the_bytes_of_a_serial_run(model, serial, tmp_path) -> None:
    killer = Killer(lambda: any((tmp_path / "facts").glob("[0-9]*.safetensors")), children)
    killer.start()
    study = run_study(model, FACTS, tmp_path, plan=PLAN, threads=1, workers=2)
    killer.join()
    assert killer.killed and study.n == len(FACTS)
    assert contents(tmp_path) == contents(serial.folder)
    assert not multiprocessing.active_children()


def test_ray_workers_write_the_bytes_of_a_serial_run_also_when_one_is_killed(model, serial, tmp_path) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    with pytest.raises(WorkerError, match="has room for"):
        run_study(model, FACTS, tmp_path / "crowd", plan=PLAN, threads=1, workers=1000, backend="ray")
    killer = Killer(lambda: any((tmp_path / "run" / "facts").glob("[0-9]*.safetensors")), actors_at_work)
    killer.start()
    study = run_study(model, FACTS, tmp_path / "run", plan=PLAN, threads=1, workers=2, backend="ray")
    killer.join()
    assert killer.killed and study.n == len(FACTS)
    assert contents(tmp_path / "run") == contents(serial.folder)


def test_without_ray_the_error_names_the_extra(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"locate-then-edit\[ray\]"):
        run_study(model, FACTS, tmp_path, plan=PLAN, workers=1, backend="ray")


def test_a_worker_that_finds_other_weights_under_the_name_is_an_error(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(model, "fingerprint", lambda: "other")
    with pytest.raises(WorkerError, match="has other weights than yours"):
        run_study(model, FACTS, tmp_path, plan=PLAN, workers=1, threads=1)
    assert not multiprocessing.active_children()


SLEEPING = """
import os, sys, time
from dataclasses import dataclass
import tracer
from tracer.workers import team_of

@dataclass(frozen=True)
class Sleeping:
    path: str
    def begun(self, model, number):
        return self.sleep
    def sleep(self, unit):
        with open(self.path, "w") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(100)

if __name__ == "__main__":
    with team_of("local", 1, Sleeping(sys.argv[2]), tracer.load(sys.argv[1], check=False), 1) as team:
        list(team.answers([0]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_worker_in_the_middle_of_a_unit_ends_with_the_process_that_asked(model_folder: Path, tmp_path: Path) -> None:
    script, told = tmp_path / "sleeping.py", tmp_path / "pid"
    script.write_text(SLEEPING, encoding="utf-8")
    asking = subprocess.Popen([sys.executable, script, model_folder, told], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (told.is_file() and told.read_text().endswith("\n")) and time.monotonic() < until:
        time.sleep(0.02)
    worker = int(told.read_text())
    assert is_alive(worker)
    asking.kill()
    asking.wait()
    until = time.monotonic() + 20
    while is_alive(worker) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(worker)


def test_a_unit_comes_first_again_until_three_workers_have_died_on_it() -> None:
    attempts = Attempts(2)
    assert (attempts.next(), attempts.next(), attempts.next()) == (0, 1, None)
    assert attempts.again(1) and attempts.next() == 1
    assert attempts.again(1) and attempts.next() == 1
    assert not attempts.again(1) and attempts.next() is None


def test_facts_that_kill_every_worker_end_the_study(model) -> None:
    with pytest.raises(StudyError, match=f"{FACTS[0].prompt}.*for want of memory. Run the study again"):
        Tracing(PLAN).given_up([FACTS[0].preflight(model)], "it died for want of memory")


def test_a_worker_opens_an_encoder_decoder_as_it_was_opened(closing, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_t5(len(closing)).save_pretrained("t5")
    closing.save_pretrained("t5")
    model = tracer.load("t5", decoder_starts="<extra_id_0>", check=False)
    recipe = Recipe.of(model, torch.get_num_threads())
    monkeypatch.chdir(tmp_path.parent)  # where a worker on Ray may begin
    opened = recipe.opened()
    assert (opened.decoder_starts, opened.anatomy.names) == ("<extra_id_0>", model.anatomy.names)
    assert opened.fingerprint() == model.fingerprint()


@pytest.mark.parametrize("options", [{"workers": -1}, {"workers": 1, "backend": "slurm"}])
def test_workers_that_there_cannot_be_are_refused(model, tmp_path, options) -> None:
    with pytest.raises(WorkerError, match='workers=2 and backend="local"'):
        run_study(model, FACTS, tmp_path, plan=PLAN, **options)
