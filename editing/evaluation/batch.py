"""Batch edits: n facts written at once, all of them scored, undone once; for several n."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from editing.datasets.case import Case, CaseScores
from editing.datasets.conflicts import without_conflicts
from editing.editors import Editor
from editing.errors import EvaluationError
from editing.evaluation.examination import Examination
from editing.evaluation.making import Made, left_as_it_was, made_together
from editing.metrics.of_cases import GENERAL_TEXT
from tracer.errors import NumericsError
from tracer.progress import bar

CHUNK = 32  # cases scored in one go


def batch_edits(
    examination: Examination,
    editor: Editor,
    cases: Sequence[Case],
    sizes: Sequence[int],
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> Iterator[tuple[int, list[CaseScores]]]:
    """For each size, the scores of the first cases edited at once.

    A batch that fails fails for all its cases, also one after which the model gives NaN. The seconds of a case are its
    share of the batch's.

    Args:
        examination: of the unedited model.
        editor: makes the edits.
        cases: without conflicts (see `without_conflicts`).
        sizes: of the batches.
        seed: of the edits.
        progress: show a bar.

    Raises:
        EvaluationError: conflicting cases, fewer cases than a size asks for, or something left on the model.
    """
    check_batches(cases, sizes)
    with bar(sum(sizes), "batch edits", show=progress, unit="case") as steps:
        for size in sizes:
            chosen = cases[:size]
            before = in_chunks(examination.before, chosen)
            with left_as_it_was(examination.model):
                scores = _edited(examination, editor, chosen, before, seed)
            examination.forget()  # or the next size would find other distributions than a run that begins there
            yield size, scores
            steps.update(size)


def in_chunks(ask, cases: Sequence[Case]) -> list[dict[str, float]]:
    """What an examination says of the cases, some at a time."""
    return [metrics for at in range(0, len(cases), CHUNK) for metrics in ask(cases[at : at + CHUNK])]


def _edited(
    examination: Examination, editor: Editor, cases: Sequence[Case], before: Sequence[dict[str, float]], seed: int
) -> list[CaseScores]:
    requests = [case.request for case in cases if case.request is not None]
    made = made_together(examination.model, editor, requests, seed)
    after, reason = _after(examination, made, cases, before)
    found, written = [], 0
    for case, old, new in zip(cases, before, after, strict=True):
        if case.request is None:
            general = {name: new[name] for name in GENERAL_TEXT if name in new}  # the model's, whatever was asked
            found.append(
                CaseScores(case.id, old, examination.failed(case, old) | general, {"not_editable": case.refused})
            )
        else:
            diagnostics = made.diagnostics(written) | ({"lost": reason} if reason else {})
            found.append(CaseScores(case.id, old, new, diagnostics, made.seconds / len(requests)))
            written += 1
    return found


def _after(
    examination: Examination, made: Made, cases: Sequence[Case], before: Sequence[dict[str, float]]
) -> tuple[list[dict[str, float]], str]:
    """The metrics after a batch, undone again; and why the model was lost, "" where it was not."""
    both = list(zip(cases, before, strict=True))
    if made.edit is None:
        return [examination.failed(case, old) for case, old in both], ""
    with made.edit:
        try:
            return in_chunks(examination.after, cases), ""
        except NumericsError as error:
            return [examination.lost(case, old) for case, old in both], str(error)


def check_batches(cases: Sequence[Case], sizes: Sequence[int]) -> None:
    """Raises EvaluationError for conflicting cases, or fewer of them than a size asks for."""
    left_out = without_conflicts(cases)[1]
    if left_out:
        case, reason = left_out[0]
        raise EvaluationError(f"Case {case.id} {reason}, and {len(left_out) - 1} more. Edit without_conflicts(cases).")
    if not sizes or min(sizes) < 1 or max(sizes) > len(cases):
        raise EvaluationError(
            f"{len(cases)} cases give no batches of {list(sizes)}. Ask for 1 to {len(cases)} at once."
        )
