"""Single edits: make one, score it, undo it, and see that the model is as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from editing.datasets.case import Case, CaseScores
from editing.editors import Editor
from editing.evaluation.examination import Examination
from editing.evaluation.making import left_as_it_was, made_each
from tracer.errors import NumericsError
from tracer.progress import bar

CHUNK = 8  # cases whose edits are computed together, where the editor can
VERIFY_EVERY = 13 * CHUNK  # whole chunks, so that a run that goes on makes those of an undisturbed one


def single_edits(
    examination: Examination,
    editor: Editor,
    cases: Sequence[Case],
    *,
    seed: int = 0,
    chunk: int = CHUNK,
    verify_every: int = VERIFY_EVERY,
    progress: bool | None = None,
) -> Iterator[CaseScores]:
    """Edits, scores and undoes one case after the other; stopping early leaves the model unedited.

    A case that cannot be edited fails where the edit should show and counts as untouched elsewhere; one whose edit
    makes the model give NaN fails everywhere. The diagnostics say why.

    Args:
        examination: of the unedited model.
        editor: makes the edits.
        cases: to edit.
        seed: of every edit.
        chunk: cases scored together before their edits.
        verify_every: cases after which weights and hooks are compared with those before.
        progress: show a bar.

    Raises:
        EvaluationError: the editor left something on the model.
    """
    model = examination.model
    with bar(len(cases), "single edits", show=progress, unit="case") as steps:
        for begin in range(0, len(cases), max(verify_every, 1)):
            span = cases[begin : begin + max(verify_every, 1)]
            with left_as_it_was(model):
                for at in range(0, len(span), chunk):
                    for scores in _chunk(examination, editor, span[at : at + chunk], seed):
                        yield scores
                        steps.update()


def begin_of_chunk(number: int) -> int:
    """The first of the cases that `single_edits` handles together with this one."""
    return number - number % CHUNK


def _chunk(examination: Examination, editor: Editor, cases: Sequence[Case], seed: int) -> Iterator[CaseScores]:
    before = {case.id: metrics for case, metrics in zip(cases, examination.before(cases), strict=True)}
    for case, made in made_each(examination.model, editor, cases, seed):
        diagnostics = made.diagnostics()
        if made.edit is None:
            after = examination.failed(case, before[case.id])
        else:
            try:
                with made.edit:
                    (after,) = examination.after([case])
            except NumericsError as error:
                after, diagnostics = examination.lost(case, before[case.id]), {**diagnostics, "lost": str(error)}
        yield CaseScores(case.id, before[case.id], after, diagnostics, made.seconds)
    examination.forget()
