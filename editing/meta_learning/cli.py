"""The command `editing train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from editing.errors import RequestError
from editing.meta_learning.ke import KE
from editing.meta_learning.learned import Learned
from editing.meta_learning.mend import MEND
from editing.meta_learning.plan import TrainingPlan
from editing.meta_learning.plot import plot_training
from editing.meta_learning.readers import training_records
from editing.meta_learning.records import TrainingRecord
from editing.meta_learning.training import TrainingResult
from tracer.console import AsJson, Device, Dtype, Model, Quiet, opened, reported, result, show_progress
from tracer.model import LanguageModel


@dataclass(frozen=True, eq=False)
class Job:
    """What the command line asks for.

    Attributes:
        records: to train and to validate on.
        options: settings of the editor that were given.
    """

    model: LanguageModel
    records: list[TrainingRecord]
    plan: TrainingPlan
    options: Mapping[str, Any]
    seed: int
    folder: Path
    progress: bool | None


def _fit_learned(kind: type[Learned]) -> Callable[[Job], TrainingResult]:
    def fit(job: Job) -> TrainingResult:
        editor = kind(**job.options)
        places: dict[str, Any] = {"seed": job.seed, "folder": job.folder, "progress": job.progress}
        trained = editor.fit(job.model, job.records, plan=job.plan, **places).trained
        assert trained is not None and trained.result is not None
        return trained.result

    return fit


TRAINERS: Mapping[str, Callable[[Job], TrainingResult]] = {"mend": _fit_learned(MEND), "ke": _fit_learned(KE)}


def train(
    data: Annotated[Path, typer.Option(help="A CounterFact (also flat) or zsRE training file, also gzipped.")],
    out: Annotated[Path, typer.Option(help="Folder of the training; the same command goes on in it.")],
    editor: Annotated[str, typer.Option(help=f"{', '.join(TRAINERS)}.")] = "mend",
    n: Annotated[int | None, typer.Option(min=2, help="Records, evenly over the file; default: all.")] = None,
    without: Annotated[
        list[Path] | None, typer.Option(help="A benchmark file whose subjects are not trained on; repeatable.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="zsre (true answers) or zsre-survey (false ones), for a zsRE file.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the optimiser, at most.")] = TrainingPlan.steps,
    batch: Annotated[int, typer.Option(min=1, help="Edits in each step.")] = TrainingPlan.batch,
    together: Annotated[int, typer.Option(min=1, help="Of them in one pass.")] = TrainingPlan.together,
    every: Annotated[int, typer.Option(min=1, help="Steps between validations.")] = TrainingPlan.every,
    patience: Annotated[int, typer.Option(min=1, help="Steps without a better one.")] = TrainingPlan.patience,
    held_out: Annotated[int, typer.Option(min=1, help="Records to validate on.")] = TrainingPlan.held_out,
    own_words: Annotated[
        float, typer.Option(min=0, max=1, help="Share of steps judged on the edited prompt itself.")
    ] = TrainingPlan.own_words,
    blocks: Annotated[int | None, typer.Option(help="The MLPs of so many last blocks are changed.")] = None,
    rate: Annotated[float | None, typer.Option(help="Of the optimiser; default: the authors'.")] = None,
    seed: Annotated[int, typer.Option(help="Of first values, split and order.")] = 0,
    model: Model = "gemma-3-270m",
    device: Device = None,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train an editor that learns to edit; stopped or killed, the same command goes on where it was."""
    with reported():
        if editor not in TRAINERS:
            raise RequestError(f"There is nothing to train for {editor!r}. Choose from {', '.join(TRAINERS)}.")
        plan = TrainingPlan(
            steps=steps,
            batch=batch,
            together=together,
            every=every,
            patience=patience,
            held_out=held_out,
            own_words=own_words,
        )
        records = training_records(data, n=n, protocol=benchmark, without=without or ())
        options = {name: value for name, value in {"blocks": blocks, "rate": rate}.items() if value is not None}
        job = Job(opened(model, device, dtype), records, plan, options, seed, out, show_progress(quiet))
        found = TRAINERS[editor](job)
        figure = out / "training.png"
        plot_training(found).savefig(figure, dpi=160)
        record = {
            **{"folder": str(out), "figure": str(figure), "steps": found.steps, "early": found.early},
            **{"seconds": found.seconds, "peak_bytes": found.peak_bytes, "skipped": found.skipped},
            "best": dict(found.best),
        }
        result(record, _told(found, out, figure, editor), as_json=as_json)


def _told(found: TrainingResult, out: Path, figure: Path, editor: str) -> str:
    best = found.best
    ended = ", stopped early" if found.early else ""
    return "\n".join(
        [
            f"{found.steps} steps in {found.seconds:.0f} s{ended}, {found.peak_bytes / 2**30:.1f} GiB at most",
            f"best at step {best['step']}, {best['n']} held-out edits: edit loss {best['edit_loss']:.3f}, "
            f"drift {best['drift']:.4f}, taken {best['edits_taken']:.0%}, in other words {best['others_taken']:.0%}",
            str(figure),
            f"editing evaluate --editor {editor} --set checkpoint={out} --data ...",
        ]
    )
