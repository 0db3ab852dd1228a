"""A study's folder: what it holds, that a killed run ends the same, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tracer
from tracer import Plan, Study, run_study
from tracer.corrupt import GaussianNoise
from tracer.errors import FileFormatError, NumericsError, StudyError
from tracer.facts import bundled, spread_over_relations
from tracer.studies import run as running
from tracer.studies.batches import batches_of

FACTS = [dataclasses.replace(fact, answer=None) for fact in spread_over_relations(bundled())[:10]]
WRONG = dataclasses.replace(FACTS[0], answer="Xyzzy")
PLAN = Plan(kinds=("state", "mlp"), severed=("mlp",), window=2, samples=3)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> tracer.LanguageModel:
    return tracer.load(model_folder)


@pytest.fixture(scope="module")
def whole(model: tracer.LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """An undisturbed run over facts of which the model does not predict one."""
    return run_study(model, [*FACTS, WRONG], tmp_path_factory.mktemp("whole") / "run", plan=PLAN, round_size=4)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def again(model: tracer.LanguageModel, out: Path, **options) -> Study:
    return run_study(model, [*FACTS, WRONG], out, **{"plan": PLAN, "round_size": 4, **options})


class Stop(BaseException):
    """What no part of a study catches."""


def stopped_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends after `n` files were written, wherever it is then."""
    written: list[Path] = []
    real = tracer.TraceResult.save

    def save(self: tracer.TraceResult, path: Path) -> None:
        if len(written) == n:
            raise Stop
        real(self, path)
        written.append(path)

    monkeypatch.setattr(tracer.TraceResult, "save", save)


def test_a_study_holds_a_file_for_each_fact_and_says_what_became_of_all(whole: Study) -> None:
    assert whole.manifest.counts() == {"traced": 10, "left out": 1}
    (left_out,) = whole.left_out
    assert left_out.fact == WRONG and "the model predicts" in left_out.reason
    assert sorted(path.name for path in (whole.folder / "facts").iterdir()) == [
        f"{n:05d}.safetensors" for n in range(10)
    ]
    about = json.loads((whole.folder / "manifest.json").read_text())
    assert about["settings"]["plan"]["window"] == 2 and "sigma=" in about["settings"]["plan"]["corruption"]
    assert {"python", "torch", "transformers", "locate-then-edit"} <= set(about["versions"][0])
    assert len(about["model"]["fingerprint"]) == len(about["facts"]["sha256"]) == 64


def test_its_average_is_that_of_the_same_facts_traced_one_by_one(model, whole: Study) -> None:
    noise = GaussianNoise().measured(model, [*FACTS, WRONG])
    options = {"kinds": PLAN.kinds, "severed": PLAN.severed, "window": 2, "samples": 3, "corruption": noise}
    alone = [tracer.trace(model, fact, **options).by_role("mlp") for fact in FACTS]
    np.testing.assert_allclose(whole.average.effects["mlp"], alone, atol=1e-5)
    assert whole.average.skipped == ((WRONG.prompt, whole.left_out[0].reason),)


@pytest.mark.parametrize("files", [1, 5, 9])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(model, whole, tmp_path, monkeypatch, files: int) -> None:
    with monkeypatch.context() as patch:
        stopped_after(files, patch)
        with pytest.raises(Stop):
            again(model, tmp_path)
    assert len(list((tmp_path / "facts").iterdir())) == files
    again(model, tmp_path)
    assert contents(tmp_path) == contents(whole.folder)


def test_a_batch_with_a_missing_file_is_traced_again_whole_and_no_other(model, whole, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(running, "batches_of", lambda model, facts, plan: [tuple(facts)])  # a round is a batch
    run_study(model, FACTS, tmp_path, plan=PLAN, round_size=4)
    before = contents(tmp_path)
    Study.path_in(tmp_path, 5).unlink()
    Study.path_in(tmp_path, 9).write_bytes(b"half")
    traced: list[str] = []

    def one_by_one(model, facts, plan):
        traced.extend(fact.fact.prompt for fact in facts)
        return [tracer.TraceResult.load(Study.path_in(whole.folder, FACTS.index(fact.fact))) for fact in facts]

    monkeypatch.setattr("tracer.studies.batches.trace_batch", one_by_one)
    run_study(model, FACTS, tmp_path, plan=PLAN, round_size=4)
    assert traced == [fact.prompt for fact in FACTS[4:]]
    assert set(contents(tmp_path)) == set(before)


def test_batches_are_alike_facts_in_order_and_more_facts_extend_only_the_last(model) -> None:
    facts = {n: fact.preflight(model, warn=False) for n, fact in enumerate(FACTS * 3)}
    few = batches_of(model, dict(list(facts.items())[:20]), PLAN)
    many = batches_of(model, facts, PLAN)
    assert sorted(n for batch in many for n in batch) == list(facts)
    assert max(map(len, many)) > 1
    longer = {batch[0]: batch for batch in many}
    for batch in few:
        assert longer[batch[0]][: len(batch)] == batch
    for batch in many:
        assert len({(len(facts[n].token_ids), facts[n].subject_span) for n in batch}) == 1


def test_more_facts_may_be_asked_for_later_and_end_the_same_fewer_not(model, whole, tmp_path) -> None:
    assert again(model, tmp_path, most=3).n == 3
    assert again(model, tmp_path).n == 10
    assert contents(tmp_path) == contents(whole.folder)
    with pytest.raises(StudyError, match="already holds 7 facts more"):
        again(model, tmp_path, most=3)


@pytest.mark.parametrize("fewer", [{"most": 2}, {"until_ci": 100.0}])
def test_a_run_refused_for_asking_fewer_facts_changes_no_byte(model, whole, tmp_path, monkeypatch, fewer) -> None:
    again(model, tmp_path)
    monkeypatch.setattr(running, "software", lambda: {**whole.manifest.versions[0], "torch": "99"})
    with pytest.raises(StudyError, match="already holds"):
        again(model, tmp_path, **fewer)
    assert contents(tmp_path) == contents(whole.folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"plan": dataclasses.replace(PLAN, window=3)}, "settings.plan.window: 2 there, 3 now"),
        ({"known_only": False}, "settings.known_only: true there, false now"),
        ({"threads": 7}, r"settings.threads: \d there, 7 now"),
        ({"round_size": 5}, "settings.round: 4 there, 5 now"),
    ],
)
def test_other_settings_are_refused_with_what_differs(model, whole: Study, options: dict, said: str) -> None:
    before = contents(whole.folder)
    with pytest.raises(StudyError, match=f"{said}.*folder of its own"):
        again(model, whole.folder, **options)
    assert contents(whole.folder) == before


def test_other_facts_or_weights_are_refused(model, whole: Study, toy_model) -> None:
    with pytest.raises(StudyError, match=r"data: 11 facts .* there, 10 facts .* now"):
        run_study(model, FACTS, whole.folder, plan=PLAN)
    with pytest.raises(StudyError, match="model.fingerprint"):
        again(toy_model, whole.folder)


def test_other_software_is_noted_in_the_manifest(model, whole: Study, tmp_path, monkeypatch) -> None:
    again(model, tmp_path, most=3)
    other = {**whole.manifest.versions[0], "torch": "99"}
    monkeypatch.setattr(running, "software", lambda: other)
    with pytest.warns(tracer.TracerWarning, match="torch .* -> 99"):
        assert again(model, tmp_path, most=3).manifest.versions == [*whole.manifest.versions, other]


def test_a_fact_that_fails_is_listed_and_the_others_are_traced(model, tmp_path, monkeypatch) -> None:
    real = tracer.studies.batches.trace_alike

    def failing(model, facts, plan):
        if any(fact.fact == FACTS[1] for fact in facts):
            raise NumericsError("NaN")
        return real(model, facts, plan)

    monkeypatch.setattr("tracer.studies.batches.trace_alike", failing)
    study = run_study(model, FACTS, tmp_path, plan=PLAN)
    assert study.manifest.counts() == {"traced": 9, "failed": 1}
    assert study.manifest.facts[1].reason == "NumericsError: NaN"
    assert (FACTS[1].prompt, "NumericsError: NaN") in study.average.skipped


@pytest.mark.parametrize(("metric", "best"), [("probability", np.nanargmax), ("kl", np.nanargmin)])
def test_until_ci_stops_at_the_end_of_a_round_and_only_there(model, tmp_path, metric: str, best: Callable) -> None:
    plan = dataclasses.replace(PLAN, metric=metric)
    wide, narrow = (
        run_study(model, FACTS, tmp_path / str(ci), plan=plan, round_size=4, until_ci=ci) for ci in (100, 1e-9)
    )
    assert (wide.n, narrow.n) == (4, 10)
    assert wide.manifest.counts() == {"traced": 4, "not reached": 6}
    effects, errors = wide.average.indirect_effect, wide.average.standard_error
    half = max(1.96 * errors[kind].flat[best(effect)] for kind, effect in effects.items())
    for factor, n in ((0.999, 10), (1.001, 4)):
        found = run_study(model, FACTS, tmp_path / f"x{factor}", plan=plan, round_size=4, until_ci=half * factor)
        assert (found.n > 4) == (n > 4)


def test_a_study_of_nothing_known_says_so(model, tmp_path) -> None:
    study = run_study(model, [WRONG], tmp_path, plan=PLAN)
    assert study.n == 0
    with pytest.raises(StudyError, match="no traced fact.*1 facts were left out.*known_only=False"):
        _ = study.average


def test_a_study_whose_facts_lack_what_was_asked_for_says_that_and_not_that_they_are_unknown(model, tmp_path) -> None:
    plan = dataclasses.replace(PLAN, groups=((99,),))
    study = run_study(model, FACTS, tmp_path, plan=plan, known_only=False)
    with pytest.raises(StudyError, match="10 facts were left out, e.g. .* not 99.*ask for what these have") as raised:
        _ = study.average
    assert "known_only" not in str(raised.value)


def test_damaged_manifests_are_refused(whole: Study, tmp_path) -> None:
    with pytest.raises(FileFormatError, match="There is no manifest.json"):
        Study.open(tmp_path)
    text = (whole.folder / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text[:500])
    with pytest.raises(FileFormatError, match="no manifest of this version"):
        Study.open(tmp_path)
    (tmp_path / "manifest.json").write_text(text.replace(FACTS[3].prompt, "x " + FACTS[3].prompt))
    with pytest.raises(FileFormatError, match="not those it was made with"):
        Study.open(tmp_path)


def test_tables_have_a_row_for_every_fact_role_and_layer(whole: Study) -> None:
    frame = whole.to_frame()
    row = frame[(frame.fact == 2) & (frame.kind == "mlp") & (frame.role == "last token") & (frame.layer == 1)]
    assert float(row.effect.iloc[0]) == whole.average.effects["mlp"][2, -1, 1]
    assert len(frame) == sum((~np.isnan(values)).sum() for values in whole.average.effects.values())
    assert {"token", "text", "indirect_effect"} <= set(whole.to_frame(by="token").columns)
    assert list(whole.facts_frame().status) == ["traced"] * 10 + ["left out"]


def wait_for(true: Callable[[], bool], process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)


def test_a_run_ended_by_kill_9_goes_on_and_ends_with_the_same_bytes(model, model_folder, tmp_path) -> None:
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(dataclasses.asdict(fact)) + "\n" for fact in FACTS))
    # The definition is slow: there is time to kill it between the first file and the last.
    options = [
        "--kinds",
        "mlp",
        "--severed",
        "",
        "--window",
        "2",
        "--samples",
        "3",
        "--engine",
        "passes",
        "--threads",
        "1",
    ]
    command = [sys.executable, "-m", "tracer.cli", "study", str(tmp_path / "facts.jsonl"), *options]
    command += ["--model", str(model_folder), "--out", str(tmp_path / "killed"), "--quiet"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": os.getcwd()})
    facts = tmp_path / "killed" / "facts"
    wait_for(lambda: facts.is_dir() and len(list(facts.glob("[0-9]*.safetensors"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = contents(facts)
    assert 2 <= len([name for name in kept if name[0] != "."]) < 10
    plan = Plan(kinds=("mlp",), window=2, samples=3, engine="passes")
    for name in ("killed", "undisturbed"):
        run_study(model, FACTS, tmp_path / name, plan=plan, threads=1, source="facts.jsonl")
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
