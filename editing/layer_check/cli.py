"""`editing check-layers`: an edit swept over the layers, beside what tracing says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import tracer
from editing.datasets.slices import chosen_numbers
from editing.editors import check_located, editor_named
from editing.evaluation import bundled_records
from editing.layer_check.check import check_by_editing
from editing.options import EditorName, Seed, Settings, listed_numbers, named_values
from tracer.console import AsJson, Device, Dtype, Model, Out, Quiet, opened, reported, result, run_folder, show_progress
from tracer.facts.readers import read_records
from tracer.model import DEFAULT_MODEL
from tracer.storage import write_json
from tracer.studies.locating import FACTS_TO_LOCATE
from tracer.studies.study import saved_average


def check_layers(
    source: Annotated[
        Path | None, typer.Argument(help="A saved average or a study's folder; default: trace bundled facts now.")
    ] = None,
    kind: Annotated[Any, typer.Option(parser=str, metavar="NAME", help="The map to look at.")] = "mlp",
    role: Annotated[str, typer.Option(help="The token to look at.")] = "last subject token",
    traced: Annotated[int, typer.Option(min=2, help="Facts to trace, if no average is given.")] = FACTS_TO_LOCATE,
    records: Annotated[Path | None, typer.Option(help="CounterFact file to edit from; default: bundled facts.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Facts to edit at each layer.")] = 6,
    layers: Annotated[str, typer.Option(help="Comma-separated; default: every --every-th.")] = "",
    every: Annotated[int, typer.Option(min=1, help="Edit at layers 0, EVERY, 2 EVERY ...")] = 1,
    editor: EditorName = "r-rome",
    settings: Settings = None,
    seed: Seed = 0,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = "float32",
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Edit the same facts at every layer: is the layer that tracing names the one to edit? Resumable."""
    from editing.layer_check.plot import plot_check
    from tracer.plot import save_figure

    with reported():
        asked, chosen = listed_numbers(layers, "--layers", "layers"), named_values(settings or [])
        check_located(editor, chosen)
        saved = None if source is None else saved_average(source)
        opened_model = opened(model, device, dtype)
        folder = run_folder(out, f"check layers {Path(model).name}")
        progress = show_progress(quiet)
        average = saved or tracer.average_to_locate(
            opened_model, kind=kind, role=role, most=traced, folder=folder / "facts", progress=progress
        )
        check = check_by_editing(
            opened_model,
            average,
            bundled_records(opened_model, n) if records is None else _spread(read_records(records), n),
            kind=kind,
            role=role,
            layers=asked or range(0, opened_model.n_layers, every),
            editor=lambda layer: editor_named(editor, opened_model, layer, **chosen),
            seed=seed,
            folder=folder / "edits",
            progress=progress,
        )
        image = save_figure(plot_check(check), folder / "check.png")
        write_json(folder / "check.json", check.record())
        table = check.to_frame().round(3).to_string(index=False)
        record = {**check.record(), "files": [str(image), str(folder / "check.json")]}
        result(record, f"{check.place.describe()}\n{table}\n{check}\n{image}", as_json=as_json)


def _spread(records: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """`n` of them, drawn evenly."""
    return [records[number] for number in chosen_numbers(len(records), n, evenly=True)]
