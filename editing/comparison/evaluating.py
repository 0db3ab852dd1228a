"""The job of a comparison's workers: make an editor, measure its costs, evaluate it, and see the model is unedited."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from editing.comparison.costs import training_costs
from editing.comparison.entrant import Entrant
from editing.comparison.folder import costs_path
from editing.comparison.plan import ASKED, ComparisonPlan, Data, Task, entry
from editing.comparison.unit import COSTS, EVERYTHING, Outcome, Unit
from editing.datasets.benchmarks import Benchmark
from editing.datasets.mquake import HopBenchmark
from editing.editors import Editor
from editing.errors import EditingError, EditingWarning, EvaluationError
from editing.evaluation.efficiency import empty_cache, measure_efficiency
from editing.evaluation.making import hook_count
from editing.evaluation.multi_hop_run import evaluate_hops
from editing.evaluation.records import Evaluation
from editing.evaluation.run import ProtocolName, evaluate
from tracer.errors import TracerError
from tracer.model import LanguageModel
from tracer.storage import remove_half_written, write_json

REQUESTS = 12  # tried to find those whose costs are measured


@dataclass(frozen=True)
class Evaluating:
    """What all units of a comparison have in common.

    Attributes:
        folder: of the comparison.
        fingerprint: of the unedited model.
        workers: that run at the same time; 0: this process alone.
        progress: show bars of what is inside a unit.
    """

    folder: Path
    data: Data
    plan: ComparisonPlan
    fingerprint: str
    workers: int = 0
    progress: bool | None = None

    def begun(self, model: LanguageModel, number: int) -> Callable[[Unit], Outcome]:
        """A function that does a unit, in worker `number`, with a folder of its own for unedited answers."""
        return _Worker(self, model, self.folder / "base" / str(number)).outcome

    def given_up(self, unit: Unit, reason: str) -> Outcome:
        """The unit is left out, as where an editor fails; the next run tries again."""
        return Outcome(0.0, {unit.what[-1]: reason})


class _Worker:
    """One model, and the editor that was made last."""

    def __init__(self, job: Evaluating, model: LanguageModel, base_folder: Path) -> None:
        self.job, self.model, self.base_folder = job, model, base_folder
        self.hooks = hook_count(model)
        self.made: tuple[Entrant, Editor | str] | None = None  # the editor, or why it could not be made

    def outcome(self, unit: Unit) -> Outcome:
        """Does a unit and says what became of it.

        Raises:
            EvaluationError: the editor left something on the model.
        """
        begun, reasons = time.monotonic(), {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EditingWarning)  # that an edit is weak, its scores say
            try:
                editor = self._measured(unit.entrant, reasons) if unit.costs else self._editor(unit.entrant)
                if unit.task is not None:
                    self._evaluate(editor, unit.task, reasons)
            except Exception as error:  # whatever one editor does, the others go on
                reasons[EVERYTHING] = _said(error)
        self._check_unedited(unit.entrant.label, reasons)
        return Outcome(time.monotonic() - begun, reasons)

    def _editor(self, entrant: Entrant) -> Editor:
        """The editor, made once for units that follow each other.

        Raises:
            EvaluationError: it could not be made the last time.
        """
        if self.made is None or self.made[0] != entrant:
            try:
                self.made = entrant, entrant.made(self.model)
            except Exception as error:
                self.made = entrant, _said(error)
        editor = self.made[1]
        if isinstance(editor, str):
            raise EvaluationError(editor)
        return editor

    def _measured(self, entrant: Entrant, reasons: dict[str, str]) -> Editor:
        """The editor; its costs are measured on the way, before its one-off costs are spent."""
        plan, data = self.job.plan, self.job.data
        label, benchmark = next((label, one) for label, one in data.items() if isinstance(one, Benchmark))
        requests = [case.request for case in benchmark.cases if case.request is not None][:REQUESTS]
        prompts = [request.prompt for request in requests[:3]]
        make = functools.partial(entrant.made, self.model)
        try:
            with empty_cache() if plan.cold else contextlib.nullcontext():
                editor, found = measure_efficiency(self.model, make, requests, prompts=prompts, seed=plan.seed)
        except Exception as error:
            editor = self._editor(entrant)  # or this one says why not
            reasons[COSTS] = _said(error)
            return editor
        self.made = entrant, editor
        about = {"entry": entry(entrant), "data": label, "data_sha256": benchmark.sha256, "cold": plan.cold}
        about |= {"workers": self.job.workers, **training_costs(entrant)}
        write_json(costs_path(self.job.folder, entrant.label), {**dataclasses.asdict(found), **about})
        return editor

    def _evaluate(self, editor: Editor, task: Task, reasons: dict[str, str]) -> None:
        remove_half_written(task.where, task.where / "edits")
        write_json(task.where / ASKED, task.asked)  # not before: an editor that cannot be made asks nothing
        try:
            self._evaluation(editor, task).save(figure=False)
        except Exception as error:
            reasons[task.what] = _said(error)

    def _evaluation(self, editor: Editor, task: Task) -> Evaluation:
        plan, options = self.job.plan, {"seed": self.job.plan.seed, "progress": self.job.progress}
        benchmark = self.job.data[task.data]
        if isinstance(benchmark, HopBenchmark):
            return evaluate_hops(self.model, editor, benchmark, task.where, **options)
        return evaluate(
            self.model,
            editor,
            benchmark,
            task.where,
            protocol=cast(ProtocolName, task.protocol),
            sizes=plan.sizes,
            plan=plan.sequence,
            questions=plan.questions,
            base_folder=self.base_folder,
            **options,
        )

    def _check_unedited(self, label: str, reasons: dict[str, str]) -> None:
        """Stops the comparison where an editor left something behind: the others would be given another model."""
        same = self.model.fingerprint() == self.job.fingerprint
        if self.model.edits or not same or hook_count(self.model) != self.hooks:
            raise EvaluationError(
                f"{label} did not leave {self.model.name} as it was, so nothing can be compared after it. "
                f"{'; '.join(reasons.values())} Run the others without it, into the same folder."
            )


def _said(error: Exception) -> str:
    """An error in words; those that are not the project's own with their type, which says what the words do not."""
    return str(error) if isinstance(error, EditingError | TracerError) else f"{type(error).__name__}: {error}"
