"""What every editor of a comparison is put through, and which of it is still to be done.

Each evaluation's folder says in asked.json what it was asked for: an editor need not be made to see that it is
finished, and a later call that asks for something else is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from editing.comparison.entrant import Entrant
from editing.comparison.folder import run_folder_of
from editing.datasets.benchmarks import Benchmark
from editing.datasets.conflicts import without_conflicts
from editing.datasets.mquake import HopBenchmark
from editing.errors import EvaluationError
from editing.evaluation.examination import Questions
from editing.evaluation.manifest import MANIFEST, cases_digest, questions_record
from editing.evaluation.multi_hop_run import PROTOCOL
from editing.evaluation.records import read_evaluation
from editing.evaluation.run import SIZES, ProtocolName
from editing.evaluation.sequential import SequentialPlan
from editing.training.checkpoint import EDITOR as TRAINED
from tracer.continuing import read_same
from tracer.storage import file_sha256, to_json

ASKED = "asked.json"
TEXT = 3  # passages read after each edit; all would cost more than the case itself
LAST = "table.tex"  # of what an evaluation writes
Data = Mapping[str, Benchmark | HopBenchmark]


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """What every editor is put through.

    Attributes:
        protocols: of "single", "batch" and "sequential"; MQuAKE has its own.
        sizes: of the batches.
        sequence: how edits follow each other.
        questions: what is asked beside the teacher-forced scores.
        costs: also measure time, memory and bytes of a few edits.
        cold: measure them with an empty cache, so that one-off costs hold the statistics each editor needs; else
            an editor finds what earlier ones have left there.
        seed: of the edits.
    """

    protocols: tuple[ProtocolName, ...] = ("single",)
    sizes: tuple[int, ...] = SIZES
    sequence: SequentialPlan = SequentialPlan()
    questions: Questions = Questions(text=TEXT)
    costs: bool = True
    cold: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Task:
    """One evaluation that is still to be run.

    Attributes:
        data: the name of its cases.
        asked: what it depends on, as JSON values.
        edits: that it makes, at most.
    """

    data: str
    protocol: str
    where: Path
    asked: dict[str, Any]
    edits: int

    @property
    def what(self) -> str:
        """Data and protocol, as a reason of failure names them."""
        return f"{self.data}, {self.protocol}"


def tasks(entrant: Entrant, data: Data, folder: Path, plan: ComparisonPlan, fingerprint: str) -> list[Task]:
    """The evaluations of one editor on the model with this fingerprint that are missing or unfinished.

    Raises:
        EvaluationError: the folder holds another model, the editor with other settings, or the data or protocol
            otherwise.
    """
    for earlier in sorted(folder.glob(f"runs/*/*/{entrant.label}/{ASKED}")):
        _check_asked(earlier, {"model": fingerprint, "editor": entry(entrant)})
    found = []
    for label, benchmark in data.items():
        for protocol in (PROTOCOL,) if isinstance(benchmark, HopBenchmark) else plan.protocols:
            where = run_folder_of(folder, (label, protocol, entrant.label))
            asked = {"model": fingerprint, **_asked(entrant, benchmark, protocol, plan)}
            for other in sorted(where.parent.glob(f"*/{ASKED}")):  # cases that differ could not be compared
                _check_asked(other, {key: value for key, value in asked.items() if key != "editor"})
            ids = [case.id for case in _cases(benchmark, protocol)]
            if not _finished(where, ids, plan):
                edits = sum(plan.sizes) if protocol == "batch" else len(ids)
                found.append(Task(label, protocol, where, asked, edits))
    return found


def entry(entrant: Entrant) -> dict[str, Any]:
    """An entrant as JSON values; of files that its settings name also their sha256."""
    about = {"editor": entrant.editor, "layer": entrant.layer, "settings": dict(entrant.settings)}
    files = {name: sha256 for name, value in entrant.settings.items() if (sha256 := _file_sha256(value))}
    return json.loads(to_json(about | ({"files": files} if files else {})))


def _file_sha256(value: Any) -> str:
    """Of the file that a setting names, of a training's folder that with the trained editor; "" of anything else."""
    if not isinstance(value, str | Path):
        return ""
    path = Path(value) / TRAINED if os.path.isdir(value) else Path(value)  # of a long text pathlib's would raise
    return file_sha256(path) if os.path.isfile(path) else ""


def _check_asked(path: Path, now: dict[str, Any]) -> None:
    """Raises EvaluationError where a file says something else; earlier versions wrote neither model nor files down."""
    same = partial(read_same, path, what="evaluation", error=EvaluationError)
    there = same({}) or {}
    known = {"model": "model" in there, "editor.files": "files" in there.get("editor", {})}
    same(now, but=[name for name, written in known.items() if not written])


def check_sizes(data: Data, plan: ComparisonPlan) -> None:
    """Raises EvaluationError for batches without a size, or where a file has fewer cases than one asks for."""
    if "batch" in plan.protocols and not plan.sizes:
        raise EvaluationError("Batches of no size edit nothing. Give their sizes, as in --batch 1,10.")
    for label, benchmark in data.items() if "batch" in plan.protocols else ():
        most = max(plan.sizes) if isinstance(benchmark, HopBenchmark) else len(_cases(benchmark, "batch"))
        if max(plan.sizes) > most:
            raise EvaluationError(
                f"{label} has {most} cases without conflicts, too few for batches of {max(plan.sizes)}. Ask for more "
                f"records (--n) or smaller batches."
            )


def _cases(benchmark: Benchmark | HopBenchmark, protocol: str) -> Sequence[Any]:
    if isinstance(benchmark, HopBenchmark) or protocol == "single":
        return benchmark.cases
    return without_conflicts(benchmark.cases)[0]


def _finished(where: Path, cases: Sequence[str], plan: ComparisonPlan) -> bool:
    if not (where / MANIFEST).is_file() or not (where / LAST).is_file():
        return False
    found = read_evaluation(where)
    if found.about["protocol"]["name"] == "batch":
        return set(plan.sizes) <= set(found.batches)
    if found.checkpoints:
        return found.checkpoints[-1].stopped or found.checkpoints[-1].edits == len(cases)
    return {case.case_id for case in found.cases} >= set(cases)


def _asked(
    entrant: Entrant, benchmark: Benchmark | HopBenchmark, protocol: str, plan: ComparisonPlan
) -> dict[str, Any]:
    """What an evaluation depends on that is known before its editor is made."""
    asked = {
        "editor": entry(entrant),
        "data": {
            "benchmark": benchmark.name,
            "file_sha256": benchmark.sha256,
            "slice": benchmark.slice,
            "cases_sha256": cases_digest(benchmark.cases),
        },
        "protocol": {"name": protocol, "seed": plan.seed},
    }
    if isinstance(benchmark, HopBenchmark):
        asked["protocol"] |= {"together": benchmark.together}
        return json.loads(to_json(asked))
    if protocol == "sequential":
        asked["protocol"] |= dataclasses.asdict(plan.sequence) | {"seed": plan.seed}
    asked["questions"] = questions_record(plan.questions)
    return json.loads(to_json(asked))
