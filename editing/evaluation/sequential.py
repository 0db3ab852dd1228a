"""Edits made one after another and never undone; at checkpoints everything is measured.

Locality is measured on a fixed set of prompts against the model before the first edit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editing.datasets.case import COMPUTED_TOGETHER, Case, CaseScores
from editing.datasets.conflicts import without_conflicts
from editing.edit import undo_all
from editing.edit_file import load_edit
from editing.editors import Editor
from editing.errors import BaseModelError, EvaluationError
from editing.evaluation.batch import in_chunks
from editing.evaluation.checkpoints import Checkpoint
from editing.evaluation.examination import Examination
from editing.evaluation.lines import Lines
from editing.evaluation.making import Computed, Made, left_as_it_was, made_together
from editing.metrics.alarms import FACTOR, CollapseAlarm
from editing.metrics.of_cases import MOST_RATIO
from tracer.errors import FileFormatError, NumericsError
from tracer.model import LanguageModel
from tracer.progress import Count, bar

CHECKPOINTS = (1, 10, 50, 100, 500, 1000, 2000, 5000, 10000)
FIXED = 50  # cases whose neighbours are the fixed set
AHEAD = 16  # edits of one case each that are computed together, by editors that have `in_turn`


@dataclass(frozen=True, kw_only=True)
class SequentialPlan:
    """How edits follow each other.

    Attributes:
        checkpoints: numbers of edits after which everything is measured; the end of the last step always is.
        step: edits written together.
        fixed: how many of the cases, from the first on, give the fixed set of neighbours.
        factor: growth of perplexity that rings the alarm.
        stop: where it rings, undo the edits since the last good checkpoint and stop.
        seed: of the edits.

    Raises:
        EvaluationError: numbers that mean nothing.
    """

    checkpoints: tuple[int, ...] = CHECKPOINTS
    step: int = 1
    fixed: int = FIXED
    factor: float = FACTOR
    stop: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.step < 1 or self.fixed < 1:
            raise EvaluationError(f"step={self.step}, fixed={self.fixed} follow nothing. Write step=1, fixed={FIXED}.")
        if min(self.checkpoints, default=1) < 1:
            raise EvaluationError(
                f"checkpoints={self.checkpoints} begin before the first edit. Write e.g. (1, 10, 100)."
            )
        if not self.factor > 1:
            raise EvaluationError(f"factor={self.factor} would ring without any edit. Write factor={FACTOR}.")


def sequential_edits(
    examination: Examination,
    editor: Editor,
    cases: Sequence[Case],
    plan: SequentialPlan | None = None,
    *,
    folder: str | Path | None = None,
    done: Sequence[int] = (),
    progress: bool | None = None,
) -> Iterator[Checkpoint]:
    """Writes the cases one step after another and yields what is measured at each checkpoint.

    At the end, also when the caller stops early, the model is as it was before the first edit.

    Args:
        examination: of the unedited model.
        editor: makes the edits.
        cases: without conflicts (see `without_conflicts`).
        plan: default `SequentialPlan()`.
        folder: where edits are kept; edits found there are applied again, not made again.
        done: checkpoints that need not be measured again.
        progress: show a bar.

    Raises:
        EvaluationError: conflicting cases, or something was left on the model.
    """
    run = _Sequence(examination, editor, cases, plan or SequentialPlan(), None if folder is None else Path(folder))
    with left_as_it_was(examination.model), bar(len(cases), "sequential edits", show=progress, unit="edit") as steps:
        try:
            yield from run.checkpoints(frozenset(done), steps.update)
        finally:
            undo_all(run.edits)


class _Sequence:
    """The edits made so far, the last good checkpoint among them, and what they are compared with."""

    def __init__(
        self, examination: Examination, editor: Editor, cases: Sequence[Case], plan: SequentialPlan, folder: Path | None
    ) -> None:
        if without_conflicts(cases)[1]:
            raise EvaluationError("Some of these cases edit one fact twice. Edit without_conflicts(cases)[0].")
        self.examination, self.editor, self.plan, self.folder = examination, editor, plan, folder
        self.cases = [_part(case, stays=False) for case in cases]
        self.fixed = [_part(case, stays=True) for case in cases[: plan.fixed]]
        self.before = in_chunks(examination.before, self.cases)
        self.fixed_before = in_chunks(examination.before, self.fixed)
        self.alarm = CollapseAlarm(examination.model, factor=plan.factor)
        self.in_turn = getattr(editor, "in_turn", None) if plan.step == 1 else None
        self.computed = Computed({}, 0.0)
        self.edits: list[Any] = []
        self.paths: list[Path | None] = []
        self.good = 0  # edits up to the last good checkpoint
        self.reasons: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.together: dict[str, int] = {}
        self.steps = None if folder is None else Lines(folder / "steps.jsonl")
        self.known = {record["edits"]: record for record in (self.steps.read() if self.steps else ())}

    def checkpoints(self, done: frozenset[int], count: Count) -> Iterator[Checkpoint]:
        """Makes every step; measures after those that reach a checkpoint."""
        for begin in range(0, len(self.cases), self.plan.step):
            end = min(begin + self.plan.step, len(self.cases))
            if begin % AHEAD == 0:
                self._look_ahead(begin)
            self._make(begin, end)
            count(end - begin)
            due = end == len(self.cases) or any(begin < point <= end for point in self.plan.checkpoints)
            if not due:
                continue
            point = None if end in done else self._measure(begin, end)
            if point is not None and point.text.collapsed and self.plan.stop:
                self._roll_back()
                yield dataclasses.replace(point, stopped=True)
                return
            self.good = len(self.edits)
            _drop_later_copies(self.edits)
            if point is not None:
                yield point

    def _roll_back(self) -> None:
        """Undoes the edits since the last good checkpoint, and removes their files."""
        undo_all(self.edits[self.good :])
        for path in self.paths[self.good :]:
            if path is not None:
                path.unlink(missing_ok=True)

    def _look_ahead(self, begin: int) -> None:
        """Computes the next edits together unless an earlier run kept all of them, so that a stop changes nothing."""
        cases = self.cases[begin : begin + AHEAD]
        ends = [end for end, case in enumerate(cases, begin + 1) if case.request is not None]
        kept = all(self._is_kept(end) for end in ends)
        self.computed = Computed.by(None if kept else self.in_turn, self.examination.model, cases, self.plan.seed)

    def _make(self, begin: int, end: int) -> None:
        """Writes one step, or applies the edit that an earlier run kept."""
        cases = self.cases[begin:end]
        requests = [case.request for case in cases if case.request is not None]
        self.reasons |= {case.id: case.refused for case in cases if case.request is None}
        if not requests:
            return
        model = self.examination.model
        path = self._path(end)
        kept = self._kept(path, end)
        made = kept or self.computed.made(model, begin % AHEAD)
        made = made or made_together(model, self.editor, requests, self.plan.seed)
        for case in cases:
            if case.request is not None:
                self.seconds[case.id] = made.seconds / len(requests)
                self.reasons |= {case.id: made.reason} if made.edit is None else {}
                self.together |= {case.id: made.together} if made.together > 1 else {}
        if made.edit is not None:
            self.edits.append(made.edit)
            self.paths.append(path)
            _drop_later_copies(self.edits[self.good :])
        if kept is None and made.edit is not None and path is not None:
            made.edit.save(path)
        if self.steps is not None and end not in self.known:
            about = {"edits": end, "seconds": made.seconds, COMPUTED_TOGETHER: made.together, "reason": made.reason}
            self.steps.append([{**about, "diagnostics": [] if made.edit is None else list(made.edit.diagnostics)}])

    def _path(self, end: int) -> Path | None:
        """Where the step that ends here is kept."""
        return None if self.folder is None else self.folder / "edits" / f"{end:06d}.safetensors"

    def _is_kept(self, end: int) -> bool:
        """Whether an earlier run made this step, and its edit, if it came to one, is still there."""
        path = self._path(end)
        return path is not None and end in self.known and (bool(self.known[end]["reason"]) or path.is_file())

    def _kept(self, path: Path | None, end: int) -> Made | None:
        """The step as an earlier run made it, applied."""
        if path is None or end not in self.known:
            return None
        record = self.known[end]
        if record["reason"]:
            return Made(None, record["seconds"], record["reason"])
        try:
            edit = load_edit(path).apply(self.examination.model)
            return Made(edit, record["seconds"], together=record.get(COMPUTED_TOGETHER, 1))
        except (FileFormatError, BaseModelError):  # gone, or after another one than then: it is made again
            return None

    def _measure(self, begin: int, end: int) -> Checkpoint:
        text = self.alarm.read()
        text = dataclasses.replace(text, ratio=min(text.ratio, MOST_RATIO))
        try:
            after = in_chunks(self.examination.after, self.cases[:end])
            fixed = in_chunks(self.examination.after, self.fixed)
        except NumericsError:  # a model of NaN has lost everything
            after = [
                self.examination.lost(case, old) for case, old in zip(self.cases[:end], self.before[:end], strict=True)
            ]
            fixed = [self.examination.lost(case, old) for case, old in zip(self.fixed, self.fixed_before, strict=True)]
        return Checkpoint(
            end,
            end - begin,
            tuple(self._scores(at, metrics) for at, metrics in enumerate(after)),
            tuple(
                CaseScores(case.id, old, new)
                for case, old, new in zip(self.fixed, self.fixed_before, fixed, strict=True)
            ),
            text,
            _relative_changes(self.examination.model),
        )

    def _scores(self, at: int, after: dict[str, float]) -> CaseScores:
        case, before = self.cases[at], self.before[at]
        seconds = self.seconds.get(case.id, math.nan)
        if case.id in self.reasons:
            return CaseScores(
                case.id, before, self.examination.failed(case, before), {"not_editable": self.reasons[case.id]}, seconds
            )
        together = {COMPUTED_TOGETHER: self.together[case.id]} if case.id in self.together else {}
        return CaseScores(case.id, before, after, together, seconds)


def _part(case: Case, *, stays: bool) -> Case:
    """The case with only those groups that should stay, or only those that should change, and what it writes from."""
    groups = tuple(group for group in case.groups if group.stays == stays)
    return dataclasses.replace(case, groups=groups, samples=() if stays else case.samples)


def _drop_later_copies(edits: Sequence[Any]) -> None:
    """Of the old values of each weight the first edit's are enough to undo all of these edits together."""
    seen: set[str] = set()
    for edit in edits:
        before = getattr(edit, "before", {})
        for name in seen & before.keys():
            del before[name]
        seen |= before.keys()


def _relative_changes(model: LanguageModel) -> dict[str, float]:
    """||W_k - W_0|| / ||W_0|| of each weight that an edit changed."""
    original: dict[str, Any] = {}
    for edit in model.edits:
        for name, before in getattr(edit, "before", {}).items():
            original.setdefault(name, before.double())
    now = {name: model.torch.get_parameter(name).detach().double() for name in original}
    return {name: float((now[name] - before).norm() / before.norm()) for name, before in original.items()}
