"""The command `editing train`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from editing.errors import RequestError
from editing.training.plot import plot_training
from editing.training.result import TrainingResult
from editing.training.trainers import TRAINERS, Job
from tracer.console import AsJson, DecoderStarts, Device, Dtype, Model, Quiet, opened, reported, result, show_progress
from tracer.model import DEFAULT_MODEL


def train(
    data: Annotated[
        list[Path],
        typer.Option(help="A CounterFact (also flat) or zsRE training file, also gzipped; serac: repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the training; the same command goes on in it.")],
    editor: Annotated[str, typer.Option(help=f"{', '.join(TRAINERS)}.")] = "mend",
    n: Annotated[int | None, typer.Option(min=2, help="Records of each file, evenly over it; default: all.")] = None,
    without: Annotated[
        list[Path] | None, typer.Option(help="A benchmark file whose subjects are not trained on; repeatable.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="zsre (true answers) or zsre-survey (false ones), for a zsRE file.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the optimiser, at most.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Edits (serac: facts) in each step.")] = None,
    together: Annotated[int | None, typer.Option(min=1, help="Of them in one pass; mend, ke.")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Steps between validations.")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Steps without a better one.")] = None,
    held_out: Annotated[int | None, typer.Option(min=1, help="Records to validate on.")] = None,
    own_words: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of steps judged on the edited prompt itself; mend, ke.")
    ] = None,
    blocks: Annotated[int | None, typer.Option(help="The MLPs of so many last blocks are changed; mend, ke.")] = None,
    rate: Annotated[float | None, typer.Option(help="Of the optimiser.")] = None,
    retriever: Annotated[str | None, typer.Option(help="Whose vectors the scope is learned over; serac.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of first values, split and order.")] = 0,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = "float32",
    decoder_starts: DecoderStarts = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train an editor that learns to edit; stopped or killed, the same command goes on where it was.

    What is not given is the editor's own default.
    """
    with reported():
        if editor not in TRAINERS:
            raise RequestError(f"There is nothing to train for {editor!r}. Choose from {', '.join(TRAINERS)}.")
        options = {
            **{"steps": steps, "batch": batch, "together": together, "every": every, "patience": patience},
            **{"held_out": held_out, "own_words": own_words, "blocks": blocks, "rate": rate, "retriever": retriever},
        }
        given = {name: value for name, value in options.items() if value is not None}
        open_model, shown = partial(opened, model, device, dtype, decoder_starts), show_progress(quiet)
        job = Job(tuple(data), n, benchmark, tuple(without or ()), given, open_model, seed, out, shown)
        found = TRAINERS[editor].fit(job)
        figure = out / "training.png"
        plot_training(found).savefig(figure, dpi=160)
        record = {
            **{"folder": str(out), "figure": str(figure), "steps": found.steps, "early": found.early},
            **{"seconds": found.seconds, "peak_bytes": found.peak_bytes, "skipped": found.skipped},
            "best": dict(found.best),
        }
        result(record, _told(found, out, figure, editor), as_json=as_json)


def _told(found: TrainingResult, out: Path, figure: Path, editor: str) -> str:
    ended = ", stopped early" if found.early else ""
    return "\n".join(
        [
            f"{found.steps} steps in {found.seconds:.0f} s{ended}, {found.peak_bytes / 2**30:.1f} GiB at most",
            f"best at step {found.best['step']}, {TRAINERS[editor].told(found.best)}",
            str(figure),
            f"editing evaluate --editor {editor} --set checkpoint={out} --data ...",
        ]
    )
