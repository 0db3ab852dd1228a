"""The `editing` command: edit a fact, keep the edit in a file, or go the whole way from trace to edit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from editing.comparison.cli import compare
from editing.comparison.explain_cli import explain_metric
from editing.comparison.recommend_cli import recommend
from editing.edit import Edit
from editing.edit_file import load_edit
from editing.editors import check_located, check_settings, editor_named
from editing.errors import RequestError
from editing.evaluation.cli import evaluate
from editing.layer_check.cli import check_layers
from editing.located_layer import layer_for
from editing.model_folder import merge, unmerge
from editing.options import EditorName, Layer, Seed, Settings, named_values
from editing.request import EditRequest
from editing.scoring.generation import complete
from editing.training.cli import train
from editing.workflow import Report
from editing.workflow import locate_then_edit as whole_way
from tracer.console import (
    AsJson,
    Device,
    Dtype,
    Model,
    Out,
    Prompt,
    Quiet,
    Samples,
    Subject,
    SubjectAt,
    Window,
    opened,
    reported,
    result,
    run_folder,
    show_progress,
)
from tracer.model import DEFAULT_MODEL, LanguageModel
from tracer.studies.locating import FACTS_TO_LOCATE

app = typer.Typer(
    help="Change a fact in a language model, and prove what changed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("check-layers")(check_layers)
app.command()(compare)
app.command()(evaluate)
app.command("explain-metric")(explain_metric)
app.command()(recommend)
app.command()(train)
New = Annotated[str, typer.Option(help="The new continuation.")]
EditFile = Annotated[Path, typer.Argument(help="A saved edit.")]
Asked = Annotated[list[str] | None, typer.Option("--ask", help="A prompt to complete; may be repeated.")]


@app.command("locate-then-edit")
def locate_then_edit(
    prompt: Prompt,
    subject: Subject,
    new: New,
    subject_at: SubjectAt = None,
    layer: Layer = None,
    facts: Annotated[int, typer.Option(min=2, help="Bundled facts traced to locate the layer.")] = FACTS_TO_LOCATE,
    paraphrase: Annotated[list[str] | None, typer.Option(help="Another prompt for the fact; may be repeated.")] = None,
    neighbour: Annotated[list[str] | None, typer.Option(help="A prompt that must not change; repeatable.")] = None,
    editor: EditorName = "r-rome",
    settings: Settings = None,
    samples: Samples = 10,
    window: Window = 10,
    seed: Seed = 0,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = "float32",
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Trace, locate, edit, trace again: the whole way, with figures and a JSON record."""
    with reported():
        request, chosen = EditRequest(prompt, subject, new, subject_at=subject_at), named_values(settings or [])
        check_located(editor, chosen)
        opened_model = opened(model, device, dtype)
        report = whole_way(
            opened_model,
            request,
            layer=layer,
            editor=lambda at: editor_named(editor, opened_model, at, **chosen),
            n_facts=facts,
            extra_paraphrases=paraphrase or (),
            extra_neighbours=neighbour or (),
            samples=samples,
            window=window,
            seed=seed,
            progress=show_progress(quiet),
        )
        paths = report.save(run_folder(out, f"{subject} to {new}"))
        record = {**report.record(), "files": list(map(str, paths))}
        result(record, "\n".join([_told(report), "", "Written:", *(f"  {path}" for path in paths)]), as_json=as_json)


@app.command()
def edit(
    prompt: Prompt,
    subject: Subject,
    new: New,
    subject_at: SubjectAt = None,
    editor: EditorName = "r-rome",
    layer: Layer = None,
    settings: Settings = None,
    save: Annotated[Path, typer.Option(help="Where the edit is kept.")] = Path("edit.safetensors"),
    seed: Seed = 0,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Edit one fact with any editor and save the edit."""
    with reported():
        request, chosen = EditRequest(prompt, subject, new, subject_at=subject_at), named_values(settings or [])
        check_settings(editor, chosen)
        if save.is_dir():
            raise RequestError(f"{save} is a folder. Write --save {save / 'edit.safetensors'}.")
        opened_model = opened(model, device, dtype)
        layer = layer_for(editor, opened_model, layer, chosen, progress=show_progress(quiet))
        writes = editor_named(editor, opened_model, layer, **chosen)
        before = complete(opened_model, [request.prompt])[0]
        made = writes.apply(opened_model, [request], seed=seed, progress=show_progress(quiet))
        made.save(save)
        after = complete(opened_model, [request.prompt])[0]
        record = {"before": before, "after": after, "file": str(save), **made.diagnostics[0]}
        result(record, f"before: {request.prompt}{before}\nafter:  {request.prompt}{after}\n{save}", as_json=as_json)


@app.command()
def apply(
    path: EditFile,
    ask: Asked = None,
    folder: Annotated[Path | None, typer.Option("--merge", help="Write the edited model to this new folder.")] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Apply a saved edit to the model it was made for; ask it, or write the edited model out."""
    with reported():
        saved = load_edit(path)
        opened_model = opened(model, device, dtype)
        saved.apply(opened_model)
        _answer(opened_model, saved, ask, folder, as_json)


@app.command()
def undo(
    folder: Annotated[Path, typer.Argument(help="A model folder that `editing apply --merge` wrote.")],
    out: Annotated[Path, typer.Option(help="Where the model as it was before is written.")],
    as_json: AsJson = False,
) -> None:
    """Take the edit out of a merged model folder: the old weights come back bit for bit."""
    with reported():
        restored = unmerge(folder, out)
        result({"folder": str(out), "fingerprint": restored.fingerprint()}, str(out), as_json=as_json)


@app.command()
def show(path: EditFile, as_json: AsJson = False) -> None:
    """Say what a saved edit changes, and for which weights it was made."""
    with reported():
        saved = load_edit(path)
        record = {
            "requests": [dataclasses.asdict(request) for request in saved.requests],
            "weights": [change.weight for change in saved.changes],
            "editor": dict(saved.editor),
            "base": saved.base,
            "diagnostics": [dict(entry) for entry in saved.diagnostics],
        }
        lines = [f"{request.prompt} -> {request.new.strip()}" for request in saved.requests]
        where = f"in {', '.join(record['weights'])}" if record["weights"] else "beside the weights"
        lines += [f"{saved.method} {where}", f"base weights {saved.base}"]
        result(record, "\n".join(lines), as_json=as_json)


def _answer(model: LanguageModel, saved: Edit, ask: list[str] | None, folder: Path | None, as_json: bool) -> None:
    prompts = ask or [request.prompt for request in saved.requests]
    answers = dict(zip(prompts, complete(model, prompts), strict=True))
    lines = [f"{prompt}{answer}" for prompt, answer in answers.items()]
    if folder is not None:
        lines.append(str(merge(saved, folder)))
    result({"answers": answers, "merged": None if folder is None else str(folder)}, "\n".join(lines), as_json=as_json)


def _told(report: Report) -> str:
    """The report for a terminal."""
    change = report.edit.diagnostics[0]
    lines = [f"{report.request.prompt} ->{report.before.answer} before, {report.request.new.strip()} asked for"]
    if report.place is not None:
        lines.append(f"located: {report.place}")
    lines.append(
        f"edited:  {report.how}, |D|/|W| {change['relative_change']:.3f}, "
        f"p({report.request.new.strip()}) {report.shown[0].new_before:.3f} -> {report.shown[0].new_after:.3f}"
    )
    for row in report.shown:
        new, old = row.new.strip(), row.old.strip()
        lines += [
            "",
            f"[{row.kind}] {row.prompt}",
            f"    p({new}) {row.new_before:.3f} -> {row.new_after:.3f}   p({old}) {row.old_before:.3f} -> "
            f"{row.old_after:.3f}",
            f"    before:{row.text_before!r}",
            f"    after: {row.text_after!r}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    app()
