"""Every editor on every data file by every protocol, into one folder; killed and started again it goes on.

An evaluation that is finished is not run again, and its editor not made again for it. An editor that cannot be
made or fails is left out with its reason, and the others go on. Later calls may add editors, data and protocols.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
import warnings
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from editing.comparison.entrant import Entrant
from editing.comparison.folder import ABOUT, Comparison, read_comparison
from editing.comparison.plan import ASKED, ComparisonPlan, Data, Task, check_sizes, entry, tasks
from editing.editors import Editor, family
from editing.errors import EditingWarning, EvaluationError
from editing.evaluation.benchmarks import Benchmark
from editing.evaluation.efficiency import empty_cache, measure_efficiency
from editing.evaluation.making import FAILURES, hook_count
from editing.evaluation.manifest import model_record, read_same
from editing.evaluation.mquake_run import HopBenchmark, evaluate_hops
from editing.evaluation.records import Evaluation
from editing.evaluation.run import Protocol, evaluate
from tracer.model import LanguageModel
from tracer.progress import bar
from tracer.storage import write_json

CRASHES = (*FAILURES, RuntimeError)  # the last one is PyTorch's, also for want of memory
EVERYTHING, COSTS = "everything", "costs"  # what fails of an editor, beside its tasks
REQUESTS = 12  # tried to find those whose costs are measured


def compare(
    model: LanguageModel,
    entrants: Sequence[Entrant],
    data: Data,
    folder: str | Path,
    *,
    plan: ComparisonPlan | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Evaluates editors beside each other.

    Args:
        model: unedited; it is so again afterwards.
        entrants: who takes part.
        data: benchmarks, also MQuAKE's, by the name that tables give them.
        folder: for everything; see `editing.comparison.folder`.
        plan: default `ComparisonPlan()`.
        progress: show bars.

    Raises:
        EvaluationError: the folder holds another model's comparison or one of other settings, a batch is larger
            than its data, no editor could be evaluated, or one left something on the model.
    """
    folder, plan = Path(folder), plan or ComparisonPlan()
    check_sizes(data, plan)
    about = _begun(folder, model)
    fingerprint = about["model"]["fingerprint"]
    todo = {entrant.label: tasks(entrant, data, folder, plan, fingerprint) for entrant in entrants}
    edits = sum(task.edits for tasks in todo.values() for task in tasks)
    with bar(edits, "comparison", show=progress, unit="edit") as steps, warnings.catch_warnings():
        warnings.simplefilter("ignore", EditingWarning)  # that an edit is weak, its scores say
        run = _Run(model, data, folder, plan, about, steps, progress, hook_count(model))
        for entrant in entrants:
            run.entrant(entrant, todo[entrant.label])
    return read_comparison(folder)


@dataclass(frozen=True)
class _Run:
    """One call's way through the entrants."""

    model: LanguageModel
    data: Data
    folder: Path
    plan: ComparisonPlan
    about: dict[str, Any]
    steps: Any
    progress: bool | None
    hooks: int

    def entrant(self, entrant: Entrant, tasks: Sequence[Task]) -> None:
        """Runs what is missing of one editor, and notes what failed."""
        label, editors, begun = entrant.label, self.about["editors"], time.monotonic()
        editors[label] = {"family": "", **editors.get(label, {}), **entry(entrant)}
        costs = self.plan.costs and not self._costs_known(entrant)
        if tasks or costs:
            again = {EVERYTHING, *(task.what for task in tasks), *([COSTS] if costs else [])}
            self._forget_reasons(label, again)
            self.steps.set_postfix_str(label)
            try:
                editor = self._made(entrant)
                editors[label]["family"] = family(editor)
                for task in tasks:
                    self._evaluate(entrant, editor, task)
            except CRASHES as error:
                self._left_out(label, error)
                self.steps.update(sum(task.edits for task in tasks))
            self._check_unedited(label)
            editors[label]["run_seconds"] = editors[label].get("run_seconds", 0) + time.monotonic() - begun
        write_json(self.folder / ABOUT, self.about)

    def _made(self, entrant: Entrant) -> Editor:
        """The editor; its costs are measured on the way, before its one-off costs are spent."""
        whole = [(label, one) for label, one in self.data.items() if isinstance(one, Benchmark)]
        if not whole or not self.plan.costs or self._costs_known(entrant):
            return entrant.made(self.model)
        label, benchmark = whole[0]
        requests = [case.request for case in benchmark.cases if case.request is not None][:REQUESTS]
        prompts = [request.prompt for request in requests[:3]]
        make = functools.partial(entrant.made, self.model)
        try:
            with empty_cache() if self.plan.cold else contextlib.nullcontext():
                editor, found = measure_efficiency(self.model, make, requests, prompts=prompts, seed=self.plan.seed)
        except CRASHES as error:
            editor = entrant.made(self.model)  # or this one says why not
            self._left_out(entrant.label, error, what=COSTS)
            return editor
        about = {"entry": entry(entrant), "data": label, "data_sha256": benchmark.sha256, "cold": self.plan.cold}
        write_json(self._costs_path(entrant), {**dataclasses.asdict(found), **about})
        return editor

    def _evaluate(self, entrant: Entrant, editor: Editor, task: Task) -> None:
        self.steps.set_postfix_str(f"{entrant.label}, {task.data}, {task.protocol}")
        write_json(task.where / ASKED, task.asked)  # not before: an editor that cannot be made asks nothing
        try:
            self._evaluation(editor, task).save(figure=False)
        except CRASHES as error:
            self._left_out(entrant.label, error, what=task.what)
        self.steps.update(task.edits)

    def _evaluation(self, editor: Editor, task: Task) -> Evaluation:
        plan, options = self.plan, {"seed": self.plan.seed, "progress": self.progress}
        if isinstance(task.benchmark, HopBenchmark):
            return evaluate_hops(self.model, editor, task.benchmark, task.where, **options)
        return evaluate(
            self.model,
            editor,
            task.benchmark,
            task.where,
            protocol=cast(Protocol, task.protocol),
            sizes=plan.sizes,
            plan=plan.sequence,
            questions=plan.questions,
            base_folder=self.folder / "base",
            **options,
        )

    def _check_unedited(self, label: str) -> None:
        """Stops the comparison where an editor left something behind: the others would be given another model."""
        same = self.model.fingerprint() == self.about["model"]["fingerprint"]
        if self.model.edits or not same or hook_count(self.model) != self.hooks:
            reasons = "; ".join(one["reason"] for one in self.about["left_out"] if one["editor"] == label)
            raise EvaluationError(
                f"{label} did not leave {self.model.name} as it was, so nothing can be compared after it. {reasons} "
                f"Run the others without it, into the same folder."
            )

    def _forget_reasons(self, label: str, again: Container[str]) -> None:
        """Those of what is tried again; reasons of what this call does not ask for stay."""
        left_out = self.about["left_out"]
        self.about["left_out"] = [one for one in left_out if one["editor"] != label or one["what"] not in again]

    def _left_out(self, label: str, error: Exception, *, what: str = EVERYTHING) -> None:
        self.about["left_out"].append({"editor": label, "what": what, "reason": str(error)})

    def _costs_path(self, entrant: Entrant) -> Path:
        return self.folder / "costs" / f"{entrant.label}.json"

    def _costs_known(self, entrant: Entrant) -> bool:
        path = self._costs_path(entrant)
        return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["entry"] == entry(entrant)


def _begun(folder: Path, model: LanguageModel) -> dict[str, Any]:
    """What the comparison's file says so far; in a new folder a new one, written before anything is evaluated."""
    about = {
        "kind": "comparison",
        "format": 1,
        "model": model_record(model, model.fingerprint()),
    }
    there = read_same(folder / ABOUT, about)
    if there is None:
        there = {**about, "editors": {}, "left_out": []}
        write_json(folder / ABOUT, there)
    return there
