"""An evaluation in a folder: records that outlive a killed run, then tables and a figure of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from editing.datasets.benchmarks import Benchmark
from editing.datasets.case import Case, CaseScores
from editing.datasets.conflicts import without_conflicts
from editing.editors import Editor
from editing.errors import EvaluationError
from editing.evaluation.batch import batch_edits, check_batches
from editing.evaluation.checkpoints import Checkpoint
from editing.evaluation.examination import Examination, Questions
from editing.evaluation.known_hops import with_known_hops
from editing.evaluation.lines import Lines
from editing.evaluation.manifest import continued_manifest, manifest
from editing.evaluation.records import Evaluation, read_batches, read_cases, read_checkpoints
from editing.evaluation.sequential import SequentialPlan, sequential_edits
from editing.evaluation.single import begin_of_chunk, single_edits
from tracer.model import LanguageModel

ProtocolName = Literal["single", "batch", "sequential"]
SIZES = (1, 10, 100)


def evaluate(
    model: LanguageModel,
    editor: Editor,
    benchmark: Benchmark,
    folder: str | Path,
    *,
    protocol: ProtocolName = "single",
    sizes: Sequence[int] = SIZES,
    plan: SequentialPlan | None = None,
    questions: Questions | None = None,
    base_folder: str | Path | None = None,
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
        base_folder: for what the unedited model says, shared by the evaluations of several editors; default `folder`.
        seed: of the edits.
        progress: show bars.

    Raises:
        EvaluationError: another evaluation in the folder, sizes that do not fit, a text longer than the model's
            context, an editor that cannot be undone.
    """
    check_protocol(protocol)
    folder, questions = Path(folder), questions or Questions()
    if protocol == "sequential":  # which reads the text at each checkpoint
        questions = dataclasses.replace(questions, text=0)
    examination = Examination(model, questions, folder=base_folder or folder)
    cases, left_out = (list(benchmark.cases), []) if protocol == "single" else without_conflicts(benchmark.cases)
    plan = dataclasses.replace(plan or SequentialPlan(), seed=seed)
    settings: dict[str, Any] = {"name": protocol, "seed": seed}
    settings |= dataclasses.asdict(plan) if protocol == "sequential" else {}
    conflicts = [f"case {case.id} {reason}" for case, reason in left_out]
    known_hops: Sequence[int] = ()
    if questions.known_hops:
        cases, *known_hops = with_known_hops(examination.unedited, cases)
    examination.check_lengths(cases)
    if protocol == "batch":
        check_batches(cases, sizes)
    about = manifest(examination, editor, benchmark, cases, settings, conflicts=conflicts, known_hops=known_hops)
    about = continued_manifest(folder, about)
    if protocol == "single":
        return Evaluation(folder, about, cases=tuple(_single(examination, editor, cases, folder, seed, progress)))
    if protocol == "batch":
        return Evaluation(folder, about, batches=_batches(examination, editor, cases, sizes, folder, seed, progress))
    return Evaluation(folder, about, checkpoints=_sequence(examination, editor, cases, plan, folder, progress))


def check_protocol(name: str) -> None:
    """Raises EvaluationError where there is no protocol of this name."""
    if name not in get_args(ProtocolName):
        raise EvaluationError(f"There is no protocol {name!r}. Choose from {', '.join(get_args(ProtocolName))}.")


def _single(
    examination: Examination, editor: Editor, cases: Sequence[Case], folder: Path, seed: int, progress: bool | None
) -> Iterator[CaseScores]:
    lines, known = Lines(folder / "cases.jsonl"), read_cases(folder)
    done = next((at for at, case in enumerate(cases) if case.id not in known), len(cases))
    again = begin_of_chunk(done)  # cases computed together are so again: then bits agree
    yield from (known[case.id] for case in cases[:done])
    for scores in single_edits(examination, editor, cases[again:], seed=seed, progress=progress):
        if scores.case_id not in known:
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
    lines, found = Lines(folder / "batches.jsonl"), read_batches(folder)
    missing = [size for size in dict.fromkeys(sizes) if size not in found]
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
    lines, found = Lines(folder / "checkpoints.jsonl"), read_checkpoints(folder)
    if found and (found[-1].stopped or found[-1].edits == len(cases)):
        return tuple(found)
    done = [point.edits for point in found]
    for point in sequential_edits(examination, editor, cases, plan, folder=folder, done=done, progress=progress):
        lines.append([dataclasses.asdict(point)])
        found.append(point)
    return tuple(found)
