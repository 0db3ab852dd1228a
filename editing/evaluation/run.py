"""An evaluation in a folder: records that outlive a killed run, then tables and a figure of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from editing.editors import Editor
from editing.errors import EvaluationError
from editing.evaluation.alarms import GeneralText
from editing.evaluation.batch import batch_edits, without_conflicts
from editing.evaluation.benchmarks import Benchmark
from editing.evaluation.case import Case, CaseScores
from editing.evaluation.examination import Examination, Questions
from editing.evaluation.lines import Lines
from editing.evaluation.manifest import continued_manifest, manifest
from editing.evaluation.sequential import Checkpoint, SequentialPlan, sequential_edits
from editing.evaluation.single import single_edits
from editing.evaluation.summary import batch_summary, sequential_summary, summary
from editing.evaluation.tables import as_latex, as_markdown, readable
from tracer.model import LanguageModel
from tracer.storage import atomic_path

Protocol = Literal["single", "batch", "sequential"]
SIZES = (1, 10, 100)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured; for single edits `cases`, for batches `batches`, for sequences `checkpoints`."""

    folder: Path
    about: dict[str, Any]
    cases: tuple[CaseScores, ...] = ()
    batches: dict[int, tuple[CaseScores, ...]] = dataclasses.field(default_factory=dict)
    checkpoints: tuple[Checkpoint, ...] = ()

    @property
    def table(self) -> pd.DataFrame:
        """The summary of its protocol."""
        return self._table(editable_only=False)

    def _table(self, *, editable_only: bool) -> pd.DataFrame:
        if self.batches:
            return batch_summary(self.batches, editable_only=editable_only)
        return (
            sequential_summary(self.checkpoints)
            if self.checkpoints
            else summary(self.cases, editable_only=editable_only)
        )

    @property
    def not_editable(self) -> int:
        """Cases whose request could not be written, in the largest batch or the longest sequence."""
        cases = self.cases or (self.checkpoints[-1].scores if self.checkpoints else self.batches[max(self.batches)])
        return sum(not case.editable for case in cases)

    def save(self) -> list[Path]:
        """Writes table.csv, table.md, table.tex and scores.png; returns their paths.

        Where some cases could not be edited a second table, of the others alone, follows the first.
        """
        from editing.evaluation.plot import plot_curves, plot_single
        from tracer.plot import save_figure

        table, shown = self.table, [readable(self.table)]
        if self.not_editable and not self.checkpoints:
            shown.append(readable(self._table(editable_only=True)))
        paths = [self.folder / f"table.{kind}" for kind in ("csv", "md", "tex")]
        texts = [table.to_csv(index=False), _joined(map(as_markdown, shown)), _joined(map(as_latex, shown))]
        for path, text in zip(paths, texts, strict=True):
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        title = f"{self.about['editor']['name']} on {self.about['data']['benchmark']}"
        figure = plot_single(table, title=title) if self.cases else plot_curves(table, title=title)
        return [*paths, save_figure(figure, self.folder / "scores.png")]


def evaluate(
    model: LanguageModel,
    editor: Editor,
    benchmark: Benchmark,
    folder: str | Path,
    *,
    protocol: Protocol = "single",
    sizes: Sequence[int] = SIZES,
    plan: SequentialPlan | None = None,
    questions: Questions | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Evaluation:
    """Evaluates an editor on a benchmark into a folder; run again, it goes on where it stopped.

    Args:
        model: unedited; it is so again afterwards.
        editor: what is evaluated.
        benchmark: from `read_benchmark`.
        folder: for records, tables and figure; an evaluation of something else there is refused.
        protocol: "single", "batch" or "sequential". The last two leave out cases that edit a fact twice.
        sizes: of the batches.
        plan: of the sequence.
        questions: what is asked beside the teacher-forced scores.
        seed: of the edits.
        progress: show bars.

    Raises:
        EvaluationError: another evaluation in the folder, sizes that do not fit, an editor that cannot be undone.
    """
    folder = Path(folder)
    examination = Examination(model, questions, folder=folder)
    cases, left_out = (list(benchmark.cases), []) if protocol == "single" else without_conflicts(benchmark.cases)
    plan = dataclasses.replace(plan or SequentialPlan(), seed=seed)
    settings: dict[str, Any] = {"name": protocol, "seed": seed}
    settings |= dataclasses.asdict(plan) if protocol == "sequential" else {}
    conflicts = [f"case {case.id} {reason}" for case, reason in left_out]
    about = manifest(examination, editor, benchmark, cases, settings, conflicts=conflicts)
    about = continued_manifest(folder, about)
    if protocol == "single":
        return Evaluation(folder, about, cases=tuple(_single(examination, editor, cases, folder, seed, progress)))
    if protocol == "batch":
        return Evaluation(folder, about, batches=_batches(examination, editor, cases, sizes, folder, seed, progress))
    if protocol == "sequential":
        return Evaluation(folder, about, checkpoints=_sequence(examination, editor, cases, plan, folder, progress))
    raise EvaluationError(f"There is no protocol {protocol!r}. Choose single, batch or sequential.")


def _single(
    examination: Examination, editor: Editor, cases: Sequence[Case], folder: Path, seed: int, progress: bool | None
) -> Iterator[CaseScores]:
    lines = Lines(folder / "cases.jsonl")
    known = {record["case_id"]: case_scores(record) for record in lines.read()}
    yield from (known[case.id] for case in cases if case.id in known)
    missing = [case for case in cases if case.id not in known]
    for scores in single_edits(examination, editor, missing, seed=seed, progress=progress):
        lines.append([vars(scores)])
        yield scores


def _batches(
    examination: Examination,
    editor: Editor,
    cases: Sequence[Case],
    sizes: Sequence[int],
    folder: Path,
    seed: int,
    progress: bool | None,
) -> dict[int, tuple[CaseScores, ...]]:
    lines = Lines(folder / "batches.jsonl")
    found = {record["size"]: tuple(map(case_scores, record["cases"])) for record in lines.read()}
    missing = [size for size in sizes if size not in found]
    for size, scores in (
        batch_edits(examination, editor, cases, missing, seed=seed, progress=progress) if missing else ()
    ):
        lines.append([{"size": size, "cases": [vars(case) for case in scores]}])
        found[size] = tuple(scores)
    return found


def _sequence(
    examination: Examination,
    editor: Editor,
    cases: Sequence[Case],
    plan: SequentialPlan,
    folder: Path,
    progress: bool | None,
) -> tuple[Checkpoint, ...]:
    lines = Lines(folder / "checkpoints.jsonl")
    found = [_checkpoint(record) for record in lines.read()]
    if found and (found[-1].stopped or found[-1].edits == len(cases)):
        return tuple(found)
    done = [point.edits for point in found]
    for point in sequential_edits(examination, editor, cases, plan, folder=folder, done=done, progress=progress):
        lines.append([dataclasses.asdict(point)])
        found.append(point)
    return tuple(found)


def case_scores(record: dict[str, Any]) -> CaseScores:
    """What `vars` of a case's scores became in JSON, which has no NaN."""
    before, after = ({name: _number(value) for name, value in record[when].items()} for when in ("before", "after"))
    return CaseScores(record["case_id"], before, after, record["diagnostics"], _number(record["seconds"]))


def _checkpoint(record: dict[str, Any]) -> Checkpoint:
    scores, fixed = (tuple(map(case_scores, record[name])) for name in ("scores", "fixed"))
    numbers = {name: _number(record["text"][name]) for name in ("perplexity", "ratio", "kl")}
    text = GeneralText(**numbers, collapsed=record["text"]["collapsed"])
    return Checkpoint(**{**record, "scores": scores, "fixed": fixed, "text": text})


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _joined(tables: Any) -> str:
    return "\n\n".join(tables) + "\n"
