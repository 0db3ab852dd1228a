"""The folder of a comparison, and what it holds so far.

comparison.json                       the model, the editors that took part, and why others did not
base/WORKER/                          what the unedited model says, asked once for all editors by each worker
costs/EDITOR.json                     time, memory and bytes of its edits
runs/DATA/PROTOCOL/EDITOR/            an evaluation each; asked.json says what it was asked for
records.jsonl  table.*  figures/  report.html    made of these
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editing.datasets.case import CaseScores
from editing.errors import EvaluationError
from editing.evaluation.manifest import MANIFEST
from editing.evaluation.records import Evaluation, read_evaluation
from tracer.storage import of_this_version

ABOUT = "comparison.json"
Key = tuple[str, str, str]  # data, protocol, editor


@dataclass(frozen=True)
class Comparison:
    """What was measured of several editors on one model.

    Attributes:
        about: model, editors by label, and who was left out why.
        evaluations: by data file, protocol and editor.
        costs: of each editor, as `Efficiency` has them.
    """

    folder: Path
    about: Mapping[str, Any]
    evaluations: Mapping[Key, Evaluation]
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def editors(self) -> list[str]:
        """Labels of the editors that were evaluated, in the order in which they took part."""
        there = {editor for _, _, editor in self.evaluations}
        return [label for label in self.about["editors"] if label in there]

    def family(self, editor: str) -> str:
        """The editor's family in words."""
        return self.about["editors"][editor]["family"]

    def scored(self) -> Iterator[tuple[Key, int, tuple[CaseScores, ...]]]:
        """Each evaluation's cases with the number of edits that the model had: 1, a batch's size, a checkpoint."""
        for key, evaluation in self.evaluations.items():
            if evaluation.cases:
                yield key, 1, evaluation.cases
            for size, cases in sorted(evaluation.batches.items()):
                yield key, size, cases
            for point in evaluation.checkpoints:
                yield key, point.edits, point.scores


def run_folder_of(folder: Path, key: Key) -> Path:
    """Where an evaluation is kept."""
    return folder.joinpath("runs", *key)


def costs_path(folder: Path, editor: str) -> Path:
    """Where the costs of an editor are kept."""
    return folder / "costs" / f"{editor}.json"


def read_comparison(folder: str | Path) -> Comparison:
    """What a comparison's folder holds, finished or not.

    Raises:
        EvaluationError: it is no such folder, or nothing was evaluated yet.
        FileFormatError: a file is damaged or of another version.
    """
    folder = Path(folder)
    path = folder / ABOUT
    if not path.is_file():
        inside = ", ".join(sorted(str(one.parent) for one in folder.glob(f"*/{ABOUT}")))
        raise EvaluationError(
            f"{folder} holds no comparison: there is no {ABOUT}. "
            + (f"These do: {inside}." if inside else "`editing compare` makes one.")
        )
    with of_this_version(path, "a comparison"):
        about = json.loads(path.read_text(encoding="utf-8"))
        order = {label: place for place, label in enumerate(about["editors"])}
        left_out = "; ".join(f"{one['editor']}: {one['reason']}" for one in about["left_out"])
        if not all("family" in one for one in about["editors"].values()):
            raise KeyError("family")
    found = {}
    for manifest in sorted((folder / "runs").glob(f"*/*/*/{MANIFEST}")):
        data, protocol, editor = manifest.parent.parts[-3:]
        evaluation = read_evaluation(manifest.parent)
        if editor in order and (evaluation.cases or evaluation.batches or evaluation.checkpoints):
            found[data, protocol, editor] = evaluation
    if not found:
        raise EvaluationError(f"{folder}: nothing was evaluated. {left_out}".strip())
    ordered = dict(sorted(found.items(), key=lambda item: (*item[0][:2], order[item[0][2]])))
    files = {label: costs_path(folder, label) for label in order}
    costs = {label: _costs(path) for label, path in files.items() if path.is_file()}
    return Comparison(folder, about, ordered, costs)


def _costs(path: Path) -> dict[str, Any]:
    """What a file of costs holds."""
    with of_this_version(path, "costs"):
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("edits", "memory")} | found
