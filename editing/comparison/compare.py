"""Every editor on every data file by every protocol, into one folder; killed and started again it goes on.

An evaluation that is finished is not run again, and its editor not made again for it. An editor that cannot be
made or fails is left out with its reason, and the others go on. Later calls may add editors, data and protocols.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from editing.comparison.entrant import Entrant
from editing.comparison.folder import ABOUT, Comparison, read_comparison, run_folder_of
from editing.editors import Editor, family
from editing.errors import EditingWarning, EvaluationError
from editing.evaluation.batch import without_conflicts
from editing.evaluation.benchmarks import Benchmark
from editing.evaluation.efficiency import measure_efficiency
from editing.evaluation.examination import Questions
from editing.evaluation.making import FAILURES
from editing.evaluation.manifest import MANIFEST, digest, read_same
from editing.evaluation.records import read_evaluation
from editing.evaluation.run import SIZES, Protocol, evaluate
from editing.evaluation.sequential import SequentialPlan
from tracer.model import LanguageModel
from tracer.progress import bar
from tracer.storage import to_json, write_json

PROTOCOLS: tuple[Protocol, ...] = ("single",)
ASKED = "asked.json"
LAST = "table.tex"  # of what an evaluation writes
REQUESTS = 12  # tried to find those whose costs are measured


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """What every editor is put through.

    Attributes:
        protocols: of "single", "batch" and "sequential".
        sizes: of the batches.
        sequence: how edits follow each other.
        questions: what is asked beside the teacher-forced scores.
        costs: also measure time, memory and bytes of a few edits.
        seed: of the edits.
    """

    protocols: tuple[Protocol, ...] = PROTOCOLS
    sizes: tuple[int, ...] = SIZES
    sequence: SequentialPlan = SequentialPlan()
    questions: Questions = Questions(text=True)
    costs: bool = True
    seed: int = 0


@dataclass(frozen=True)
class _Task:
    """One evaluation that is still to be run."""

    data: str
    benchmark: Benchmark
    protocol: Protocol
    where: Path
    asked: dict[str, Any]
    edits: int


def compare(
    model: LanguageModel,
    entrants: Sequence[Entrant],
    data: Mapping[str, Benchmark],
    folder: str | Path,
    *,
    plan: ComparisonPlan | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Evaluates editors beside each other.

    Args:
        model: unedited; it is so again afterwards.
        entrants: who takes part.
        data: benchmarks by the name that tables give them.
        folder: for everything; see `editing.comparison.folder`.
        plan: default `ComparisonPlan()`.
        progress: show bars.

    Raises:
        EvaluationError: the folder holds another model's comparison or one of other settings, a batch is larger
            than its data, or no editor could be evaluated.
    """
    folder, plan = Path(folder), plan or ComparisonPlan()
    _check_sizes(data, plan)
    about = _begun(folder, model)
    todo = {entrant.label: _tasks(entrant, data, folder, plan) for entrant in entrants}
    edits = sum(task.edits for tasks in todo.values() for task in tasks)
    with bar(edits, "comparison", show=progress, unit="edit") as steps, warnings.catch_warnings():
        warnings.simplefilter("ignore", EditingWarning)  # that an edit is weak, its scores say
        run = _Run(model, data, folder, plan, about, steps, progress)
        for entrant in entrants:
            run.entrant(entrant, todo[entrant.label])
    return read_comparison(folder)


@dataclass(frozen=True)
class _Run:
    """One call's way through the entrants."""

    model: LanguageModel
    data: Mapping[str, Benchmark]
    folder: Path
    plan: ComparisonPlan
    about: dict[str, Any]
    steps: Any
    progress: bool | None

    def entrant(self, entrant: Entrant, tasks: Sequence[_Task]) -> None:
        """Runs what is missing of one editor, and notes what failed."""
        label, editors = entrant.label, self.about["editors"]
        editors[label] = {"family": "", **editors.get(label, {}), **_entry(entrant)}
        self.about["left_out"] = [one for one in self.about["left_out"] if one["editor"] != label]
        if tasks or (self.plan.costs and not self._costs_known(entrant)):
            self.steps.set_postfix_str(label)
            try:
                editor = self._made(entrant)
                editors[label]["family"] = family(editor)
                for task in tasks:
                    self._evaluate(entrant, editor, task)
            except FAILURES as error:
                self._left_out(label, error)
                self.steps.update(sum(task.edits for task in tasks))
        write_json(self.folder / ABOUT, self.about)

    def _made(self, entrant: Entrant) -> Editor:
        """The editor; its costs are measured on the way, before its one-off costs are spent."""
        if not self.plan.costs or self._costs_known(entrant):
            return entrant.made(self.model)
        label, benchmark = next(iter(self.data.items()))
        requests = [case.request for case in benchmark.cases if case.request is not None][:REQUESTS]
        prompts = [request.prompt for request in requests[:3]]
        make = functools.partial(entrant.made, self.model)
        try:
            editor, found = measure_efficiency(self.model, make, requests, prompts=prompts, seed=self.plan.seed)
        except EvaluationError as error:
            self._left_out(entrant.label, error, what="costs")
            return entrant.made(self.model)
        about = {"entry": _entry(entrant), "data": label, "data_sha256": benchmark.sha256}
        write_json(self._costs_path(entrant), {**dataclasses.asdict(found), **about})
        return editor

    def _evaluate(self, entrant: Entrant, editor: Editor, task: _Task) -> None:
        plan = self.plan
        self.steps.set_postfix_str(f"{entrant.label}, {task.data}, {task.protocol}")
        write_json(task.where / ASKED, task.asked)  # not before: an editor that cannot be made asks nothing
        try:
            evaluate(
                self.model,
                editor,
                task.benchmark,
                task.where,
                protocol=task.protocol,
                sizes=plan.sizes,
                plan=plan.sequence,
                questions=plan.questions,
                base_folder=self.folder / "base",
                seed=plan.seed,
                progress=self.progress,
            ).save(figure=False)
        except FAILURES as error:
            self._left_out(entrant.label, error, what=f"{task.data}, {task.protocol}")
        self.steps.update(task.edits)

    def _left_out(self, label: str, error: Exception, *, what: str = "everything") -> None:
        self.about["left_out"].append({"editor": label, "what": what, "reason": str(error)})

    def _costs_path(self, entrant: Entrant) -> Path:
        return self.folder / "costs" / f"{entrant.label}.json"

    def _costs_known(self, entrant: Entrant) -> bool:
        path = self._costs_path(entrant)
        return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["entry"] == _entry(entrant)


def _tasks(entrant: Entrant, data: Mapping[str, Benchmark], folder: Path, plan: ComparisonPlan) -> list[_Task]:
    """The evaluations of one editor that are missing or unfinished."""
    found = []
    for label, benchmark in data.items():
        for protocol in plan.protocols:
            where = run_folder_of(folder, (label, protocol, entrant.label))
            asked = _asked(entrant, benchmark, protocol, plan)
            for other in sorted(where.parent.glob(f"*/{ASKED}")):  # cases that differ could not be compared
                read_same(other, asked, but=() if other.parent == where else ("editor",))
            cases = benchmark.cases if protocol == "single" else without_conflicts(benchmark.cases)[0]
            edits = sum(plan.sizes) if protocol == "batch" else len(cases)
            if not _finished(where, [case.id for case in cases], plan):
                found.append(_Task(label, benchmark, protocol, where, asked, edits))
    return found


def _finished(where: Path, cases: Sequence[str], plan: ComparisonPlan) -> bool:
    if not (where / MANIFEST).is_file() or not (where / LAST).is_file():
        return False
    found = read_evaluation(where)
    if found.about["protocol"]["name"] == "batch":
        return set(plan.sizes) <= set(found.batches)
    if found.checkpoints:
        return found.checkpoints[-1].stopped or found.checkpoints[-1].edits == len(cases)
    return {case.case_id for case in found.cases} >= set(cases)


def _asked(entrant: Entrant, benchmark: Benchmark, protocol: Protocol, plan: ComparisonPlan) -> dict[str, Any]:
    """What an evaluation depends on that is known before its editor is made."""
    snippets = plan.questions.snippets
    questions = dataclasses.asdict(dataclasses.replace(plan.questions, snippets=None))
    asked = {
        "editor": _entry(entrant),
        "data": {
            "benchmark": benchmark.name,
            "file_sha256": benchmark.sha256,
            "slice": benchmark.slice,
            "cases_sha256": digest([dataclasses.asdict(case) for case in benchmark.cases]),
        },
        "protocol": {"name": protocol, "seed": plan.seed},
        "questions": {**questions, "snippets": digest(sorted(snippets.items())) if snippets else None},
    }
    if protocol == "sequential":
        asked["protocol"] |= dataclasses.asdict(plan.sequence) | {"seed": plan.seed}
    return json.loads(to_json(asked))


def _entry(entrant: Entrant) -> dict[str, Any]:
    about = {"editor": entrant.editor, "layer": entrant.layer, "settings": dict(entrant.settings)}
    return json.loads(to_json(about))


def _begun(folder: Path, model: LanguageModel) -> dict[str, Any]:
    """What the comparison's file says so far; a new one for a new folder."""
    about = {
        "kind": "comparison",
        "format": 1,
        "model": {
            "name": model.name,
            "fingerprint": model.fingerprint(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "threads": torch.get_num_threads(),
        },
    }
    there = read_same(folder / ABOUT, about)
    return there or {**about, "editors": {}, "left_out": []}


def _check_sizes(data: Mapping[str, Benchmark], plan: ComparisonPlan) -> None:
    for label, benchmark in data.items() if "batch" in plan.protocols else ():
        most = len(without_conflicts(benchmark.cases)[0])
        if max(plan.sizes) > most:
            raise EvaluationError(
                f"{label} has {most} cases without conflicts, too few for batches of {max(plan.sizes)}. Ask for more "
                f"records (--n) or smaller batches."
            )
