"""A study on disk: its facts and what became of them, their traces, tables and averages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd

from tracer.effect import AverageTrace, TraceResult
from tracer.errors import StudyError
from tracer.fact import ROLES
from tracer.studies.averaging import average_of, why_none
from tracer.studies.manifest import Entry, Manifest


@dataclass(frozen=True, eq=False)
class Study:
    """What `run_study` wrote. Read when asked: open it again after more facts were traced.

    Attributes:
        folder: holds manifest.json and facts/NUMBER.safetensors.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """The study in a folder, finished or not.

        Raises:
            FileFormatError: there is none, or its manifest is damaged.
        """
        return cls(Path(folder), Manifest.load(Path(folder)))

    @staticmethod
    def path_in(folder: Path, number: int) -> Path:
        """Where the trace of a fact is kept."""
        return folder / "facts" / f"{number:05d}.safetensors"

    @classmethod
    def load_in(cls, folder: Path, number: int) -> TraceResult:
        """The trace of a fact; errors as `TraceResult.load`."""
        return TraceResult.load(cls.path_in(folder, number))

    @property
    def name(self) -> str:
        """The last part of the model's name."""
        return Path(self.manifest.model["name"]).name

    @property
    def n(self) -> int:
        """Number of facts traced."""
        return len(self.manifest.numbers("traced"))

    @property
    def left_out(self) -> list[Entry]:
        """Facts that were not traced, or failed, and why."""
        return [self.manifest.facts[number] for number in self.manifest.numbers("left out", "failed")]

    def traces(self) -> Iterator[tuple[int, TraceResult]]:
        """The traced facts in their order: number and trace, read one at a time."""
        for number in self.manifest.numbers("traced"):
            yield number, self.load_in(self.folder, number)

    @cached_property
    def average(self) -> AverageTrace:
        """Effects by role and layer over all traced facts, those left out listed.

        Raises:
            StudyError: no fact is traced.
        """
        results = [result for _, result in self.traces()]
        skipped = [(entry.fact.prompt, entry.reason) for entry in self.left_out]
        if not results:
            raise StudyError(f"{self.folder} has no traced fact. {why_none(skipped)}")
        return average_of(results, skipped)

    def facts_frame(self) -> pd.DataFrame:
        """One row a fact of the list: fact (its number), prompt, subject, answer, relation, status, reason."""
        return pd.DataFrame(
            [
                {
                    "fact": number,
                    "prompt": entry.fact.prompt,
                    "subject": entry.fact.subject,
                    "answer": entry.fact.answer,
                    "relation": entry.fact.relation,
                    "status": entry.status,
                    "reason": entry.reason,
                }
                for number, entry in enumerate(self.manifest.facts)
            ]
        )

    def to_frame(self, *, by: Literal["role", "token"] = "role") -> pd.DataFrame:
        """A long table of all traced facts.

        By role: fact, subject, relation, kind, role, layer, effect (NaN rows left out). By token: the columns of
        `TraceResult.to_frame` after fact, subject and relation.
        """
        frames = []
        for number, result in self.traces():
            own = _by_role(result) if by == "role" else result.to_frame()
            fact = self.manifest.facts[number].fact
            about = {"fact": number, "subject": fact.subject, "relation": fact.relation}
            for at, (name, value) in enumerate(about.items()):
                own.insert(at, name, value)
            frames.append(own)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {status}" for status, n in self.manifest.counts().items())
        return f"{self.folder}: {len(self.manifest.facts)} facts, {self.manifest.model['name']}; {counts}"

    __repr__ = __str__  # what a notebook shows


def saved_average(source: str | Path) -> AverageTrace:
    """The average in a file that `AverageTrace.save` wrote, or that of the study in a folder.

    Raises:
        FileFormatError: neither is there.
        StudyError: the study has no traced fact.
    """
    source = Path(source)
    return Study.open(source).average if source.is_dir() else AverageTrace.load(source)


def _by_role(result: TraceResult) -> pd.DataFrame:
    records = [
        {"kind": kind, "role": role, "layer": layer, "effect": value}
        for kind in result.restored
        for role, row in zip(ROLES, result.by_role(kind), strict=True)
        for layer, value in enumerate(row)
        if value == value
    ]
    return pd.DataFrame.from_records(records)
