"""The whole way on a tiny model, its files, and both command lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_llama
from typer.testing import CliRunner

import tracer
from editing import IKE, MEMIT, EditRequest, load_edit
from editing.cli import app as editing_app
from editing.locate_then_edit.rome import ROME
from editing.located_layer import located_layer
from editing.workflow import locate_then_edit
from tracer.cli import app as tracer_app
from tracer.errors import SiteError

REQUEST = EditRequest("The Space Needle is located in the city of", subject="The Space Needle", new=" Paris")
PROMPT = ["--prompt", REQUEST.prompt, "--subject", REQUEST.subject]
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning", "ignore::tracer.TracerWarning")


def quick(layer: int) -> ROME:
    return ROME(layer=layer, steps=4, tokens=700, context_plan=())


FACTS = [
    tracer.Fact("The capital of France is", subject="France"),
    tracer.Fact("The mother tongue of Angela Merkel is", subject="Angela Merkel"),
]


@pytest.fixture
def folder(tmp_path: Path, tokenizer) -> Path:
    """A tiny model as a transformers folder, for the command lines."""
    torch.manual_seed(0)
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def run(app, *arguments: str | Path, code: int = 0) -> str:
    """Runs a command; returns what it printed on stdout (stderr if it failed)."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def test_the_whole_way_writes_everything_and_can_be_undone(toy_model: tracer.LanguageModel, tmp_path) -> None:
    before = toy_model.fingerprint()
    options = {"facts": FACTS, "samples": 2, "window": 2, "extra_neighbours": ["The capital of France is"]}
    report = locate_then_edit(toy_model, REQUEST, editor=quick, **options)
    assert report.place.layer == report.edit.editor["layer"]
    assert report.after.answer_id == REQUEST.fact.preflight(toy_model, warn=False).answer_id
    kinds = [row.kind for row in report.shown]
    assert kinds[0] == "edited" and kinds.count("paraphrase") == 4 and "neighbour" in kinds
    assert report.shown[0].new_before == pytest.approx(report.edit.diagnostics[0]["probability_before"])
    paths = report.save(tmp_path / "run")
    assert all(path.is_file() and path.stat().st_size > 0 for path in paths)
    record = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    assert record["located"]["layer"] == report.place.layer
    assert record["settings"]["fingerprint"] == before != toy_model.fingerprint()
    report.edit.undo()
    assert toy_model.fingerprint() == before
    load_edit(tmp_path / "run" / "edit.safetensors").apply(toy_model).undo()


def test_a_given_layer_is_taken_and_nothing_is_averaged(toy_model: tracer.LanguageModel) -> None:
    report = locate_then_edit(toy_model, REQUEST, layer=2, editor=quick, samples=2)
    assert report.place is None and report.average is None
    assert report.edit.editor["layer"] == 2


def test_a_report_says_how_the_edit_was_made(toy_model: tracer.LanguageModel) -> None:
    quick_memit = {"steps": 4, "tokens": 700, "context_plan": ()}
    report = locate_then_edit(
        toy_model, REQUEST, layer=1, editor=lambda at: MEMIT(layers=(at, at + 1), **quick_memit), samples=2
    )
    assert report.how == "MEMIT at layers 1, 2"
    report.edit.undo()
    report = locate_then_edit(toy_model, REQUEST, layer=1, editor=quick, samples=2)
    assert report.how == "r-ROME at layer 1"
    report.edit.undo()
    assert locate_then_edit(toy_model, REQUEST, layer=1, editor=lambda _: IKE(count=0), samples=2).how == "ike"


def test_a_layer_is_located_by_one_map_at_one_role(toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(SiteError, match="write kind= and role=, not kinds="):
        tracer.average_to_locate(toy_model, kinds=("mlp", "attn"))


def test_a_layer_is_located_once_for_a_model_also_while_it_is_edited(toy_model, monkeypatch) -> None:
    facts = [tracer.Fact(f"{name} is in the city of", subject=name) for name in ("The Louvre", "The Space Needle")]
    monkeypatch.setattr("tracer.studies.locating.bundled", lambda: facts)
    found = located_layer(toy_model)
    assert found == tracer.locate(tracer.average_to_locate(toy_model, facts)).layer
    monkeypatch.setattr("tracer.average_to_locate", None)  # what is known is not traced again
    assert located_layer(toy_model) == found
    with quick(1).apply(toy_model, [EditRequest(facts[0].prompt, facts[0].subject, " Rome")]):
        assert located_layer(toy_model) == found


def test_a_model_that_knows_no_fact_has_no_located_layer(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    wrong = tracer.Fact("The Louvre is in the city of", subject="The Louvre", answer="Rome")
    monkeypatch.setattr("tracer.studies.locating.bundled", lambda: [wrong])
    assert located_layer(toy_model) is None


def test_a_failing_re_trace_leaves_the_model_unedited(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    before = toy_model.fingerprint()
    real, calls = tracer.trace, []

    def fails_the_second_time(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(tracer, "trace", fails_the_second_time)
    with pytest.raises(KeyboardInterrupt):
        locate_then_edit(toy_model, REQUEST, layer=1, editor=quick, samples=2)
    assert toy_model.fingerprint() == before and toy_model.edits == []


def test_trace_prints_json_and_writes_figures(folder: Path) -> None:
    out = folder / "out"
    arguments = [*PROMPT, "--model", folder / "model", "--samples", 2, "--severed", "mlp", "--out", out, "--json"]
    record = json.loads(run(tracer_app, "trace", *arguments))
    assert set(record["peaks"]) == {"state", "mlp", "attn", "state | mlp severed"}
    assert {path.name for path in out.iterdir()} == {"trace.png", "trace.html", "trace.csv", "trace.safetensors"}
    assert (out / "trace.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_tokens_shows_what_the_model_sees(folder: Path) -> None:
    shown = run(tracer_app, "tokens", *PROMPT, "--model", folder / "model", "--answer", "Seattle")
    assert "* subject: tokens 0 to" in shown and "answer:" in shown


def test_average_then_locate_from_its_file(folder: Path) -> None:
    facts = folder / "facts.jsonl"
    facts.write_text("".join(json.dumps({"prompt": f.prompt, "subject": f.subject}) + "\n" for f in FACTS))
    out = folder / "out"
    arguments = [facts, "--model", folder / "model", "--samples", 2, "--kinds", "state,mlp", "--out", out, "--json"]
    record = json.loads(run(tracer_app, "average", *arguments))
    assert record["facts"] == 2 and set(record["peaks"]) == {"state", "mlp", "state | mlp severed"}
    assert {"average.png", "severed.png", "average.html"} <= {path.name for path in out.iterdir()}
    place = json.loads(run(tracer_app, "locate", out / "average.safetensors", "--json"))
    assert place["kind"] == "mlp" and 0 <= place["layer"] < 4
    assert "first in resamples" in run(tracer_app, "locate", out / "average.safetensors")


def test_edit_apply_merge_undo_by_command(folder: Path, tmp_path) -> None:
    saved, model = tmp_path / "edit.safetensors", ["--model", folder / "model"]
    made = run(editing_app, "edit", *PROMPT, "--new", "Paris", "--layer", 1, "--save", saved, *model, "--json")
    assert json.loads(made)["file"] == str(saved)
    assert "The Space Needle" in run(editing_app, "show", saved)
    merged = tmp_path / "merged"
    record = json.loads(run(editing_app, "apply", saved, *model, "--merge", merged, "--ask", REQUEST.prompt, "--json"))
    assert list(record["answers"]) == [REQUEST.prompt]
    undone = json.loads(run(editing_app, "undo", merged, "--out", tmp_path / "back", "--json"))
    assert undone["fingerprint"] == tracer.load(folder / "model", device="cpu").fingerprint()
    refused = run(editing_app, "apply", saved, "--model", merged, code=2)
    assert refused.splitlines()[-1].startswith("BaseModelError: ")


def test_the_whole_way_by_command(folder: Path) -> None:
    out = folder / "run"
    arguments = [*PROMPT, "--new", " Paris", "--layer", 1, "--samples", 2, "--model", folder / "model", "--out", out]
    told = run(editing_app, "locate-then-edit", *arguments, "--quiet")
    assert "[edited]" in told and str(out / "before_after.png") in told
    assert {"record.json", "trace_before.png", "trace_after.html"} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize("editor", ["memit", "ft-l"])
def test_other_editors_write_where_it_was_located(folder: Path, editor: str) -> None:
    out, model = folder / "run", ["--model", folder / "model"]
    quick = {"memit": ["tokens=700", "steps=4", "context_plan=[]"], "ft-l": ["steps=4"]}[editor]
    settings = [part for one in quick for part in ("--set", one)]
    arguments = [*PROMPT, "--new", " Paris", "--layer", 1, "--samples", 2, "--editor", editor, *settings, "--out", out]
    told = run(editing_app, "locate-then-edit", *arguments, *model, "--quiet")
    assert {"memit": "MEMIT at layer 1,", "ft-l": "FT-L at layer 1,"}[editor] in told


def test_a_layer_may_be_told_as_a_setting(folder: Path) -> None:
    saved, quick = folder / "edit.safetensors", ["tokens=700", "steps=4", "context_plan=[]", "skip_first=False"]
    settings = [part for one in ["layer=2", *quick] for part in ("--set", one)]
    model = ["--model", folder / "model", "--save", saved]
    run(editing_app, "edit", *PROMPT, "--new", "Paris", *settings, *model)
    assert load_edit(saved).editor["layer"] == 2 and load_edit(saved).editor["skip_first"] is False


def test_an_editor_that_needs_no_layer_edits_by_command(folder: Path) -> None:
    saved, model = folder / "edit.safetensors", ["--model", folder / "model"]
    made = ["--editor", "ike", "--set", "count=0", "--save", saved, *model, "--json"]
    assert json.loads(run(editing_app, "edit", *PROMPT, "--new", "Paris", *made))["file"] == str(saved)
    assert "ike beside the weights" in run(editing_app, "show", saved)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["edit", "--editor", "roam"], "RequestError: There is no editor 'roam'. Choose from r-rome,"),
        (["locate-then-edit", "--editor", "serac"], "RequestError: serac does not write to the layer"),
        (["locate-then-edit", "--editor", "memit", "--set", "layers=[1]"], "layers=(1,): leave it out"),
        (["edit", "--set", "layer=1", "--layer", "2", "--model", "MODEL"], "Layer 2 or 1? Give one of the two"),
        (
            ["edit", "--editor", "memit", "--set", "layers=[1]", "--layer", "2", "--model", "MODEL"],
            "leave layer=2 out",
        ),
        (
            ["edit", "--set", "model=1", "--layer", "1", "--model", "MODEL"],
            "rome has no setting 'model'. Choose from clamp, ",
        ),
        (["edit", "--set", "identity=maybe", "--layer", "1", "--model", "MODEL"], "identity='maybe' is neither"),
        (["edit", "--set", "radius=None", "--editor", "grace", "--model", "MODEL"], "radius=None is no number"),
        (
            ["edit", "--set", "clam=2", "--layer", "1", "--model", "MODEL"],
            "rome has no setting 'clam'. Choose from clamp, ",
        ),
    ],
)
def test_editors_that_do_not_fit_are_refused(folder: Path, arguments: list[str], said: str) -> None:
    command, *rest = [str(folder / "model") if argument == "MODEL" else argument for argument in arguments]
    assert said in run(editing_app, command, *PROMPT, "--new", "Paris", *rest, code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trace", "--prompt", "France is", "--subject", "Spain"], "FactError: The subject 'Spain' is not in"),
        (["trace", *PROMPT, "--kinds", "heads", "--model", "MODEL"], "SiteError: There is no kind 'heads'"),
        (["trace", *PROMPT, "--model", "/nowhere/at/all"], "ModelSourceError: Could not load"),
        (["average", "/nowhere.json"], "FileFormatError: There is no file /nowhere.json"),
    ],
)
def test_mistakes_are_one_line_and_exit_with_2(folder: Path, arguments: list[str], said: str) -> None:
    arguments = [str(folder / "model") if argument == "MODEL" else argument for argument in arguments]
    stderr = run(tracer_app, *arguments, code=2)
    assert said in stderr and "Traceback" not in stderr
