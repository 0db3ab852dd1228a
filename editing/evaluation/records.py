"""What an evaluation measured: read from its folder, as tables and as a figure.

manifest.json       what was evaluated
cases.jsonl         single edits, a record a case; or batches.jsonl, checkpoints.jsonl
table.csv .md .tex  the means with n and interval, the file's sha256 and the slice that was read
scores.png
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from editing.datasets.case import CaseScores
from editing.errors import EvaluationError
from editing.evaluation.checkpoints import Checkpoint
from editing.evaluation.lines import Lines
from editing.evaluation.manifest import MANIFEST
from editing.evaluation.summary import batch_summary, sequential_summary, summary
from editing.evaluation.tables import as_latex, as_markdown, readable
from editing.metrics.alarms import GeneralText
from tracer.storage import atomic_path, of_this_version


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured; for single edits `cases`, for batches `batches`, for sequences `checkpoints`."""

    folder: Path
    about: dict[str, Any]
    cases: tuple[CaseScores, ...] = ()
    batches: dict[int, tuple[CaseScores, ...]] = dataclasses.field(default_factory=dict)
    checkpoints: tuple[Checkpoint, ...] = ()

    @property
    def title(self) -> str:
        """What was evaluated on which records, in a line."""
        data = self.about["data"]
        return (
            f"{self.about['editor']['name']}, {self.about['protocol']['name']} edits, {data['benchmark']} (writes "
            f"{data['target']}), {data['slice']} records, file sha256 {data['file_sha256'][:12]}"
        )

    @property
    def table(self) -> pd.DataFrame:
        """The summary of its protocol."""
        return self.summarised(editable_only=False)

    def summarised(self, *, editable_only: bool) -> pd.DataFrame:
        """The same, with or without cases that could not be edited."""
        if self.batches:
            return batch_summary(self.batches, editable_only=editable_only)
        if self.checkpoints:
            return sequential_summary(self.checkpoints, editable_only=editable_only)
        return summary(self.cases, editable_only=editable_only)

    @property
    def not_editable(self) -> int:
        """Cases whose request could not be written, in the largest batch or the longest sequence."""
        largest = self.batches[max(self.batches)] if self.batches else ()
        cases = self.cases or (self.checkpoints[-1].scores if self.checkpoints else largest)
        return sum(not case.editable for case in cases)

    def save(self, *, figure: bool = True) -> list[Path]:
        """Writes table.csv, table.md, table.tex and, unless told not to, scores.png; returns their paths.

        Where some cases could not be edited a second table, of the others alone, if any, follows the first.
        """
        table, shown = self.table, [readable(self.table)]
        if self.not_editable:
            others = self.summarised(editable_only=True)
            shown += [readable(others)] if len(others) else []
        paths = [self.folder / f"table.{kind}" for kind in ("csv", "md", "tex")]
        data = self.about["data"]
        numbers = table.assign(data_sha256=data["file_sha256"], slice=data["slice"]).to_csv(index=False)
        texts = [
            numbers,
            _joined([self.title, *map(as_markdown, shown)]),
            _joined([f"% {self.title}", *map(as_latex, shown)]),
        ]
        for path, text in zip(paths, texts, strict=True):
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return [*paths, self._figure()] if figure else paths

    def _figure(self) -> Path:
        from editing.evaluation.plot import plot_curves, plot_single
        from tracer.plot import save_figure

        title = f"{self.about['editor']['name']} on {self.about['data']['benchmark']}"
        draw = plot_single if self.cases else plot_curves
        return save_figure(draw(self.table, title=title), self.folder / "scores.png")


def read_evaluation(folder: str | Path) -> Evaluation:
    """What an evaluation has kept in its folder so far, finished or not.

    Raises:
        EvaluationError: there is none.
        FileFormatError: a file is damaged or of another version.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise EvaluationError(f"{folder} holds no evaluation: there is no {MANIFEST}.")
    with of_this_version(path, "an evaluation"):
        about = json.loads(path.read_text(encoding="utf-8"))
        name = about["protocol"]["name"]
    with of_this_version(folder, "records"):
        if name == "batch":
            return Evaluation(folder, about, batches=read_batches(folder))
        if name == "sequential":
            return Evaluation(folder, about, checkpoints=tuple(read_checkpoints(folder)))
        return Evaluation(folder, about, cases=tuple(read_cases(folder).values()))


def read_cases(folder: Path) -> dict[str, CaseScores]:
    """Single edits by case."""
    return {record["case_id"]: case_scores(record) for record in Lines(folder / "cases.jsonl").read()}


def read_batches(folder: Path) -> dict[int, tuple[CaseScores, ...]]:
    """The cases of each batch that is written down, by the batch's size."""
    lines = Lines(folder / "batches.jsonl").read()
    return {record["size"]: tuple(map(case_scores, record["cases"])) for record in lines}


def read_checkpoints(folder: Path) -> list[Checkpoint]:
    """Those of a sequence."""
    return [_checkpoint(record) for record in Lines(folder / "checkpoints.jsonl").read()]


def case_scores(record: dict[str, Any]) -> CaseScores:
    """What `vars` of a case's scores became in JSON, which has no NaN."""
    before, after = ({name: _number(value) for name, value in record[when].items()} for when in ("before", "after"))
    return CaseScores(record["case_id"], before, after, record["diagnostics"], _number(record["seconds"]))


def _checkpoint(record: dict[str, Any]) -> Checkpoint:
    scores, fixed = (tuple(map(case_scores, record[name])) for name in ("scores", "fixed"))
    numbers = {name: _number(record["text"][name]) for name in ("perplexity", "ratio", "kl")}
    text = GeneralText(**numbers, collapsed=record["text"]["collapsed"])
    changes = {name: _number(value) for name, value in record["relative_change"].items()}
    return Checkpoint(**{**record, "scores": scores, "fixed": fixed, "text": text, "relative_change": changes})


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _joined(tables: Iterable[str]) -> str:
    return "\n\n".join(tables) + "\n"
