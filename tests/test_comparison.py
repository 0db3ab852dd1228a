"""Several editors into one folder: what is there, what planted editors score, and that a killed run ends the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from planted import RECORD, Copies, Dictated, Planted, RankOne
from test_mquake import WHOLE
from typer.testing import CliRunner

from editing.cli import app
from editing.comparison import ComparisonPlan, Entrant, compare, entrants, read_comparison, read_settings, scores_frame
from editing.comparison.costs import training_costs
from editing.comparison.tables import shown_tables
from editing.datasets.benchmarks import Benchmark
from editing.editors import EDITORS
from editing.errors import EvaluationError, RequestError
from editing.evaluation import Questions, SequentialPlan, read_benchmark
from editing.training.checkpoint import State, save_state, training_spent
from tracer.storage import cache_folder, write_json

SUBJECTS = ("Angela Merkel", "Max Planck", "Karl Marx", "Otto Hahn")
PATHS = ("a/b", "..", "*", "ro?e", "[ab]", ".hidden", "a b")
QUICK = ComparisonPlan(questions=Questions(free=False), costs=False)
TIMES = re.compile(r'"(seconds|\w+_seconds)": [^,}]+')


def records(n: int = 4) -> list[dict]:
    found = []
    for number, subject in enumerate(SUBJECTS[:n]):
        rewrite = {**RECORD["requested_rewrite"], "subject": subject}
        found.append(
            {**RECORD, "case_id": number, "requested_rewrite": rewrite, "paraphrase_prompts": [f"{subject} speaks"]}
        )
    return found


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Benchmark]:
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps(records()), encoding="utf-8")
    return {"counterfact": read_benchmark(path)}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """Planted editors among those by name, and what they were made for."""
    made: dict[str, list] = {}

    def named(name: str, kind):
        def make(model, layer, **settings):
            made.setdefault(name, []).append(kind(**settings))
            return made[name][-1]

        monkeypatch.setitem(EDITORS, name, make)

    named("says-new", Dictated)
    named("changes-nothing", Planted)
    named("forgets", lambda: Dictated(memory=1))
    named("rank-one", RankOne)
    named("copies", Copies)
    return made


def asked(*names: str) -> list[Entrant]:
    return entrants(names)


def test_an_editor_is_evaluated_by_every_protocol_and_made_once(toy_model, data, planted, tmp_path: Path) -> None:
    plan = ComparisonPlan(
        protocols=("single", "batch", "sequential"), sizes=(1, 2), questions=Questions(free=False), costs=False
    )
    found = compare(toy_model, asked("changes-nothing", "rank-one"), data, tmp_path / "run", plan=plan, progress=False)
    assert [key[1:] for key in found.evaluations] == [
        (protocol, editor) for protocol in ("batch", "sequential", "single") for editor in planted
    ]
    assert found.editors == ["changes-nothing", "rank-one"]
    assert {name: len(editors) for name, editors in planted.items()} == {"changes-nothing": 1, "rank-one": 1}
    again = compare(toy_model, asked("changes-nothing", "rank-one"), data, tmp_path / "run", plan=plan, progress=False)
    assert {name: len(editors) for name, editors in planted.items()} == {"changes-nothing": 1, "rank-one": 1}
    assert again.evaluations.keys() == found.evaluations.keys()


def test_who_was_evaluated_elsewhere_has_a_family_too(toy_model, data, planted, tmp_path: Path) -> None:
    names, folder = ("ft-l", "memprompt", "changes-nothing"), tmp_path / "run"
    plan = ComparisonPlan(questions=Questions(free=False), costs=False)
    families = ["fine tuning", "memory", "others"]
    for _ in range(2):
        found = compare(toy_model, asked(*names), data, folder, plan=plan, progress=False)
        assert [found.family(name) for name in names] == families
        about = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        write_json(folder / "comparison.json", {**about, "editors": {}})  # as if their folders had been moved here


def test_planted_editors_get_exactly_the_planted_scores(toy_model, data, planted, tmp_path: Path) -> None:
    names = ("says-new", "changes-nothing", "forgets", "copies")
    plan = ComparisonPlan(
        protocols=("single", "sequential"),
        sequence=SequentialPlan(factor=1e9),
        questions=Questions(free=False),
        costs=False,
    )
    found = compare(toy_model, asked(*names), data, tmp_path / "run", plan=plan, progress=False)
    for name in ("says-new", "changes-nothing"):
        for case in found.evaluations["counterfact", "single", name].cases:
            assert case.after["reliability_tf_exact"] == float(name == "says-new")
            assert case.after["locality_agreement"] == 1
    for case in found.evaluations["counterfact", "single", "copies"].cases:
        assert case.after["reliability_token_acc"] == case.after["generalization_token_acc"] == 0
        assert case.after["specificity_accuracy"] == 0 and case.after["locality_agreement"] == 0
    retained = {name: found.evaluations["counterfact", "sequential", name].checkpoints[-1] for name in names}
    kept = {name: point.retention("reliability_tf_exact") for name, point in retained.items()}
    assert kept == {"says-new": 1, "changes-nothing": 0, "forgets": 1 / 4, "copies": 0}
    assert retained["forgets"].last("reliability_tf_exact") == 1


def test_the_unedited_model_is_asked_once_for_all_editors(toy_model, data, planted, tmp_path: Path) -> None:
    plan = ComparisonPlan(questions=Questions(free=False, kl=False), costs=False)
    base = tmp_path / "run" / "base" / "0" / "base_scores.jsonl"
    compare(toy_model, asked("rank-one"), data, tmp_path / "run", plan=plan, progress=False)
    before = base.read_bytes()
    compare(toy_model, asked("rank-one", "says-new"), data, tmp_path / "run", plan=plan, progress=False)
    (line,) = before.splitlines()
    assert base.read_bytes() == before and len(json.loads(line)["pairs"]) == 4 * 2 + 4 * 2 + 2


def results(folder: Path) -> dict[str, str]:
    """All but what each worker was told by the unedited model."""
    return {name: text for name, text in contents(folder).items() if not name.startswith("base")}


def contents(folder: Path) -> dict[str, str]:
    """Every file that holds numbers, without times."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".jsonl", ".csv")]
    return {str(path.relative_to(folder)): TIMES.sub("", path.read_text("utf-8")) for path in paths}


def test_a_run_that_is_ended_anywhere_goes_on_and_ends_with_the_same_bytes(
    toy_model, data, planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ComparisonPlan(
        protocols=("single", "batch", "sequential"), sizes=(1, 3), questions=Questions(free=False), costs=False
    )

    def run(name: str) -> None:
        compare(toy_model, asked("rank-one", "changes-nothing"), data, tmp_path / name, plan=plan, progress=False)

    run("whole")
    for lines in (2, 4, 8, 13):  # among single edits, batches and steps of a sequence
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stopped_after(lines, patch)
            run(f"ended {lines}")
        assert toy_model.edits == []
        run(f"ended {lines}")
        assert contents(tmp_path / f"ended {lines}") == contents(tmp_path / "whole")


def stopped_after(lines: int, patch: pytest.MonkeyPatch) -> None:
    """Ends the run when it writes its n-th group of records, a part of which is on disk already."""
    from editing.evaluation.lines import Lines

    written, append = [], Lines.append

    def stop(self, rows) -> None:
        written.append(1)
        if len(written) == lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(b'{"half": ')
            raise KeyboardInterrupt
        append(self, rows)

    patch.setattr(Lines, "append", stop)


def test_a_folder_whose_first_editor_was_interrupted_refuses_another_model(
    toy_model, data, planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ComparisonPlan(protocols=("single", "batch"), sizes=(2,), questions=Questions(free=False), costs=False)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("editing.evaluation.run._batches", stop)
        compare(toy_model, asked("rank-one"), data, tmp_path / "run", plan=plan, progress=False)
    assert (tmp_path / "run" / "runs" / "counterfact" / "batch").exists()
    toy_model.torch.get_parameter(toy_model.anatomy.value_weight_name(0)).data.mul_(1.1)
    for _ in range(2):
        with pytest.raises(EvaluationError, match="holds another (comparison|evaluation) .*(fingerprint|model)"):
            compare(toy_model, asked("rank-one"), data, tmp_path / "run", plan=plan, progress=False)
        (tmp_path / "run" / "comparison.json").unlink(missing_ok=True)  # asked.json says it too


def test_an_editor_that_cannot_be_made_is_left_out_with_its_reason(toy_model, data, planted, tmp_path: Path) -> None:
    found = compare(toy_model, asked("rome", "rank-one"), data, tmp_path / "run", plan=QUICK, progress=False)
    assert found.editors == ["rank-one"]
    (left_out,) = found.about["left_out"]
    assert left_out["editor"] == "rome" and "Which layer" in left_out["reason"]
    again = compare(toy_model, asked("rank-one"), data, tmp_path / "run", plan=QUICK, progress=False)
    assert [one["editor"] for one in again.about["left_out"]] == ["rome"]


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, MemoryError, AssertionError])
def test_an_editor_that_crashes_is_left_out_and_the_others_go_on(
    toy_model, data, planted, tmp_path: Path, kind: type[Exception]
) -> None:
    class Greedy(Planted):
        def apply(self, model, requests, *, seed=0, progress=None):
            raise kind("out of memory")

    names = entrants(["greedy", "rank-one"], tables={"greedy": {"editor": "changes-nothing"}})
    EDITORS["changes-nothing"] = lambda model, layer: Greedy()  # pyright: ignore[reportIndexIssue]
    found = compare(toy_model, names, data, tmp_path / "run", plan=QUICK, progress=False)
    assert found.editors == ["rank-one"]
    assert found.about["left_out"] == [
        {"editor": "greedy", "what": "counterfact, single", "reason": f"{kind.__name__}: {kind('out of memory')}"}
    ]


def test_an_editor_that_leaves_something_behind_stops_the_comparison(toy_model, data, planted, tmp_path) -> None:
    class Leaves(Planted):
        def apply(self, model, requests, *, seed=0, progress=None):
            model.anatomy.head.register_forward_hook(lambda *_: None)
            return super().apply(model, requests)

    planted["rank-one"] = []
    names = entrants(["leaves", "rank-one"], tables={"leaves": {"editor": "changes-nothing"}})
    EDITORS["changes-nothing"] = lambda model, layer: Leaves()  # pyright: ignore[reportIndexIssue]
    with pytest.raises(EvaluationError, match="leaves did not leave .* as it was.*left 4 hooks.*Run the others"):
        compare(toy_model, names, data, tmp_path / "run", plan=QUICK, progress=False)
    assert planted["rank-one"] == []


def test_a_folder_refuses_another_model_or_other_settings(toy_model, data, planted, tmp_path: Path) -> None:
    compare(toy_model, asked("rank-one"), data, tmp_path / "run", plan=QUICK, progress=False)
    other = entrants(["rank-one"], tables={"rank-one": {"scale": 0.2}})
    with pytest.raises(EvaluationError, match=r'editor.settings.scale: "absent" there, 0.2 now'):
        compare(toy_model, other, data, tmp_path / "run", plan=QUICK, progress=False)
    less = {"counterfact": data["counterfact"].only(["rewrite"])}
    with pytest.raises(EvaluationError, match="cases_sha256"):
        compare(toy_model, asked("rank-one"), less, tmp_path / "run", plan=QUICK, progress=False)
    toy_model.torch.get_parameter(toy_model.anatomy.value_weight_name(0)).data.mul_(1.1)
    with pytest.raises(EvaluationError, match="fingerprint"):
        compare(toy_model, asked("rank-one"), data, tmp_path / "run", plan=QUICK, progress=False)


def test_a_folder_refuses_an_editor_with_other_settings_on_other_data(toy_model, data, planted, tmp_path) -> None:
    compare(toy_model, asked("rank-one"), data, tmp_path / "run", plan=QUICK, progress=False)
    other = entrants(["rank-one"], tables={"rank-one": {"scale": 0.2}})
    with pytest.raises(EvaluationError, match="scale"):
        compare(toy_model, other, {"other": data["counterfact"]}, tmp_path / "run", plan=QUICK, progress=False)


@pytest.mark.parametrize("name", ["editor.safetensors", ""])
def test_a_folder_refuses_an_editor_trained_again_at_the_same_path(
    toy_model, data, planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(EDITORS, "trained", lambda model, layer, **settings: RankOne())
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "editor.safetensors").write_bytes(b"first")
    names = entrants(["trained"], tables={"trained": {"checkpoint": str(tmp_path / "training" / name)}})
    for _ in range(2):
        compare(toy_model, names, data, tmp_path / "run", plan=QUICK, progress=False)
    (tmp_path / "training" / "editor.safetensors").write_bytes(b"again")
    with pytest.raises(EvaluationError, match="files"):
        compare(toy_model, names, data, tmp_path / "run", plan=QUICK, progress=False)


def test_what_an_earlier_version_did_not_write_down_is_not_compared(toy_model, data, planted, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("text", encoding="utf-8")
    EDITORS["rank-one"] = lambda model, layer, **_: RankOne()  # pyright: ignore[reportIndexIssue]
    names = entrants(["rank-one"], tables={"rank-one": {"corpus": str(tmp_path / "corpus.txt")}})
    compare(toy_model, names, data, tmp_path / "run", plan=QUICK, progress=False)
    (path,) = (tmp_path / "run").rglob("asked.json")
    there = json.loads(path.read_text("utf-8"))
    del there["model"], there["editor"]["files"]
    path.write_text(json.dumps(there), encoding="utf-8")
    assert compare(toy_model, names, data, tmp_path / "run", plan=QUICK, progress=False).editors == ["rank-one"]


def test_reasons_of_failure_stay_until_what_failed_is_asked_again(toy_model, data, planted, tmp_path: Path) -> None:
    fails = [True]

    class Fails(RankOne):
        def apply(self, model, requests, *, seed=0, progress=None):
            if fails:
                raise RuntimeError("out of memory")
            return super().apply(model, requests)

        each = None

    EDITORS["rank-one"] = lambda model, layer: Fails()  # pyright: ignore[reportIndexIssue]
    first, other = data, {"other": data["counterfact"]}
    compare(toy_model, asked("rank-one", "says-new"), first, tmp_path / "run", plan=QUICK, progress=False)
    fails.clear()
    for _ in range(2):
        found = compare(toy_model, asked("rank-one"), other, tmp_path / "run", plan=QUICK, progress=False)
        assert [one["what"] for one in found.about["left_out"]] == ["counterfact, single"]
    found = compare(toy_model, asked("rank-one"), first, tmp_path / "run", plan=QUICK, progress=False)
    assert found.about["left_out"] == []


def test_batches_without_a_size_are_refused(toy_model, data, planted, tmp_path) -> None:
    plan = ComparisonPlan(protocols=("batch",), sizes=())
    with pytest.raises(EvaluationError, match="--batch 1,10"):
        compare(toy_model, asked("rank-one"), data, tmp_path / "run", plan=plan, progress=False)


def test_blanks_in_lists_of_names_are_no_part_of_them(tmp_path: Path) -> None:
    (tmp_path / "counterfact.json").write_text(json.dumps(records()), encoding="utf-8")
    command = ["compare", "--data", str(tmp_path / "counterfact.json"), "--editors", "ft, kn", "--protocols"]
    told = CliRunner().invoke(app, [*command, "single, bogus", "--model", str(tmp_path / "nowhere")])
    assert told.exit_code == 2 and "no editor" not in told.output and "single, bogus" in told.output


@pytest.mark.filterwarnings("default::editing.EditingWarning")
def test_options_that_say_nothing_about_mquake_are_refused_or_with_other_files_noted(tmp_path: Path) -> None:
    for name, content in (("counterfact", records()), ("mquake", [WHOLE])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    options = ["--groups", "rewrite", "--no-kl", "--evenly", "--n", "1", "--model", str(tmp_path / "nowhere")]

    def told(*names: str) -> str:
        files = [word for name in names for word in ("--data", str(tmp_path / f"{name}.json"))]
        return CliRunner().invoke(app, ["compare", *files, "--editors", "ft", *options]).output

    sentence = "--groups, --no-kl: this does not apply to mquake. MQuAKE's cases have a protocol of their own"
    alone, beside = told("mquake"), told("mquake", "counterfact")
    assert f"EvaluationError: {sentence}" in alone and "Leave it out" in alone and "Loading" not in alone
    assert f"note: {sentence}" in beside and "Loading" in beside
    assert "does not apply" not in told("counterfact")


@pytest.mark.parametrize(
    ("options", "said", "before"),
    [
        (["--benchmark", "zsre"], "No file can be read as zsre", True),
        (["--out", str(Path(__file__))], "Invalid value for '--out'", True),
        (["--layer", "99"], "Layer 99 is outside", False),
        (["--set", "memit.layers=[1,77]"], "memit: Layer 77 is outside", False),
    ],
)
def test_what_does_not_fit_the_files_or_the_model_is_refused_before_any_edit(
    model_folder: Path, tmp_path: Path, options: list[str], said: str, before: bool
) -> None:
    (tmp_path / "counterfact.json").write_text(json.dumps(records()), encoding="utf-8")
    words = ["compare", "--data", str(tmp_path / "counterfact.json"), "--editors", "ft,memit", "--layer", "1"]
    told = CliRunner().invoke(
        app, [*words, "--model", str(model_folder), "--quiet", "--out", str(tmp_path / "run"), *options]
    )
    assert told.exit_code == 2 and said in told.output
    assert ("Loading" in told.output) is not before and not (tmp_path / "run" / "comparison.json").exists()


def test_batches_larger_than_the_data_are_refused_before_anything_runs(toy_model, data, planted, tmp_path) -> None:
    plan = ComparisonPlan(protocols=("batch",), sizes=(1, 100))
    with pytest.raises(EvaluationError, match="4 cases without conflicts"):
        compare(toy_model, asked("rank-one"), data, tmp_path / "run", plan=plan, progress=False)
    assert planted == {} and not (tmp_path / "run").exists()


def test_costs_are_measured_once_before_the_edits_are_scored(toy_model, data, planted, tmp_path: Path) -> None:
    plan = ComparisonPlan(questions=Questions(free=False))
    for _ in range(2):
        found = compare(toy_model, asked("rank-one"), data, tmp_path / "run", plan=plan, progress=False)
    assert len(planted["rank-one"]) == 1
    cost = found.costs["rank-one"]
    assert cost["edits"] == 3 and cost["edit_seconds"] > 0 and cost["persistent_bytes"] > 1000


def test_what_a_saved_edit_holds_is_not_counted_twice(tmp_path: Path) -> None:
    (tmp_path / "editor.safetensors").write_bytes(b"trained")
    settings = {"checkpoint": str(tmp_path)}
    assert training_costs(Entrant("a", "mend", settings=settings))["training_bytes"] == len(b"trained")
    assert training_costs(Entrant("b", "serac", settings=settings))["training_bytes"] == 0


def test_costs_hold_what_a_training_took_and_how_many_workers_ran(
    toy_model, data, planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EDITORS, "trained", lambda model, layer, **settings: RankOne())
    network = torch.nn.Linear(2, 2)
    state = State(network, torch.optim.Adam(network.parameters()), seconds=12.5)
    save_state(tmp_path / "training", state)
    (tmp_path / "training" / "editor.safetensors").write_bytes(b"network")
    names = entrants(["trained"], tables={"trained": {"checkpoint": str(tmp_path / "training")}})
    plan = ComparisonPlan(questions=Questions(free=False))
    found = compare(toy_model, names, data, tmp_path / "run", plan=plan, progress=False)
    cost = found.costs["trained"]
    assert (cost["training_seconds"], cost["training_bytes"], cost["workers"]) == (12.5, len(b"network"), 0)
    path = tmp_path / "run" / "costs" / "trained.json"
    write_json(path, {name: value for name, value in cost.items() if not name.startswith("training")})
    again = compare(toy_model, names, data, tmp_path / "run", plan=plan, progress=False)
    assert again.costs["trained"]["training_seconds"] == 12.5  # of an earlier version they are measured again
    (single, *_) = shown_tables(again, scores_frame(again))
    assert list(single.cells["edit_seconds"])[1].endswith(", a share of 4 at once")


def test_what_is_not_known_of_a_training_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"network")
    assert training_spent(tmp_path / "mine.safetensors") == (None, len(b"network"))
    assert training_spent(tmp_path / "nowhere") == (None, None)


@pytest.mark.parametrize("cold", [True, False])
def test_cold_costs_are_those_of_an_empty_cache(toy_model, data, planted, tmp_path: Path, cold: bool) -> None:
    caches, before = [], cache_folder()

    class Looks(RankOne):
        def apply(self, model, requests, *, seed=0, progress=None):
            caches.append(cache_folder())
            return super().apply(model, requests)

    names = entrants(["looks"], tables={"looks": {"editor": "rank-one"}})
    EDITORS["rank-one"] = lambda model, layer: Looks()  # pyright: ignore[reportIndexIssue]
    plan = ComparisonPlan(questions=Questions(free=False), cold=cold)
    compare(toy_model, names, data, tmp_path / "run", plan=plan, progress=False)
    assert [cache == before for cache in caches] == [not cold] * 4  # singles are made by `each`
    assert cache_folder() == before


def test_costs_of_a_warm_cache_are_measured_again_where_cold_ones_are_asked_for(
    toy_model, data, planted, tmp_path: Path
) -> None:
    def measured(cold: bool) -> dict:
        plan = ComparisonPlan(questions=Questions(free=False), cold=cold)
        found = compare(toy_model, asked("rank-one"), data, tmp_path / "run", plan=plan, progress=False)
        *_, costs = shown_tables(found, scores_frame(found))
        return {**found.costs["rank-one"], "said": "rank-one with the cache as it was (--cold" in costs.source}

    warm, cold, again = measured(False), measured(True), measured(False)
    assert (warm["cold"], warm["said"]) == (False, True) and (cold["cold"], cold["said"]) == (True, False)
    assert again == cold  # what is known better is kept


def test_settings_are_tables_of_editors_or_of_new_names(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[memit]\nlayers = [0, 2]\n[gentle]\neditor = "rome"\nlayer = 1\nclamp = 0.5\n', encoding="utf-8")
    tables = read_settings(path)
    memit, gentle, rome, ike = entrants(["memit", "gentle", "rome", "ike"], layer=3, tables=tables)
    assert (memit.layer, memit.settings) == (None, {"layers": (0, 2)})
    assert (gentle.editor, gentle.layer, gentle.settings) == ("rome", 1, {"clamp": 0.5})
    assert (rome.layer, ike.layer) == (3, None)
    assert [one.label for one in entrants(["all"], tables=tables)] == [*EDITORS, "gentle"]


@pytest.mark.parametrize(
    ("names", "tables", "error", "said"),
    [
        (["memory"], {}, RequestError, "no editor 'memory'"),
        (["rome", "rome"], {}, EvaluationError, "name each once"),
        (["ft"], {"ft": {"stepz": 3}}, RequestError, "ft has no setting 'stepz'. Choose from batch, "),
        (["rome"], {"mine": {"clamp": 1}}, EvaluationError, "say no editor"),
        *(([label], {label: {"editor": "rome"}}, EvaluationError, "letters and digits") for label in PATHS),
    ],
)
def test_entrants_that_cannot_be_are_refused(names, tables, error, said: str) -> None:
    with pytest.raises(error, match=said):
        entrants(names, tables=tables)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_the_command_with_workers_ended_by_kill_9_goes_on_without_them_and_ends_with_the_same_bytes(
    model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "counterfact.json").write_text(json.dumps(records()), encoding="utf-8")
    (tmp_path / "settings.toml").write_text('[gentle]\neditor = "ft"\nsteps = 2\n', encoding="utf-8")
    command = ["compare", "--data", tmp_path / "counterfact.json", "--editors", "gentle,mend", "--no-free"]
    command += ["--settings", tmp_path / "settings.toml", "--protocols", "single,batch", "--batch", "2", "--no-costs"]
    words = [str(word) for word in [*command, "--quiet", "--threads", 1, "--model", model_folder, "--out"]]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    running = subprocess.Popen(
        [sys.executable, "-m", "editing.cli", *words, str(killed), "--workers", "2"], stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while not list(killed.rglob("cases.jsonl")) and time.monotonic() < until and running.poll() is None:
        time.sleep(0.005)
    running.kill()
    running.wait()
    assert list(killed.rglob("cases.jsonl")) and not (killed / "table.csv").exists()
    for folder in (killed, whole):
        told = CliRunner().invoke(app, [*words, str(folder)])
        assert told.exit_code == 0, told.output
        assert "mend" in told.stdout and "trained" in told.stdout  # left out, with its reason
    assert results(killed) == results(whole)
    assert (whole / "report.html").stat().st_size > 50_000


def test_with_snippets_the_command_scores_how_consistent_sampled_texts_are(model_folder: Path, tmp_path: Path) -> None:
    snippets = [{"relation_id": "P103", "target_id": "Q150", "samples": [{"text": "French is spoken in France."}]}]
    for name, content in (("counterfact", records(1)), ("snippets", snippets)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "settings.toml").write_text('[gentle]\neditor = "ft"\nsteps = 1\n', encoding="utf-8")
    command = ["compare", "--data", tmp_path / "counterfact.json", "--settings", tmp_path / "settings.toml", "--quiet"]
    command += ["--editors", "gentle", "--no-free", "--no-costs", "--text", 0, "--model", model_folder]
    words = [str(word) for word in [*command, "--snippets", tmp_path / "snippets.json", "--out", tmp_path / "run"]]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2 and "Add --writing" in refused.output and not (tmp_path / "run").exists()
    told = CliRunner().invoke(app, [*words, "--writing"])
    assert told.exit_code == 0 and "consistency" in told.stdout, told.output
    (case,) = read_comparison(tmp_path / "run").evaluations["counterfact", "single", "gentle"].cases
    assert 0 <= case.after["consistency"] <= 1 and case.after["fluency"] > 0


def test_a_folder_without_a_comparison_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="`editing compare` makes one"):
        read_comparison(tmp_path)
