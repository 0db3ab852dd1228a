"""Who traces the batches of a study: this process, local processes, or a Ray cluster's.

A worker holds a model of its own and gets one batch at a time; only the study itself writes files.
A worker that dies is replaced and its batch handed out again, so no fact is lost, and none counts
twice. Batches do not depend on who traces them: results equal a serial run's, bit for bit, as long as
machines, threads and software are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch

from tracer.effect import TraceResult
from tracer.errors import StudyError
from tracer.fact import TokenizedFact
from tracer.model import LanguageModel, load
from tracer.plan import Plan
from tracer.studies.batches import trace_batch

Backend = Literal["local", "ray"]
Found = list[TraceResult | str]
ATTEMPTS = 3


class Workers(Protocol):
    """Whoever traces batches."""

    def traced(self, batches: Sequence[Sequence[TokenizedFact]]) -> Iterator[tuple[int, Found]]:
        """Each batch's place in `batches` with its traces (or why they failed), once, as they come."""
        ...


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to trace as the study's own process would."""

    name: str
    device: str
    dtype: torch.dtype
    fingerprint: str
    sweep_fault: str | None
    plan: Plan
    threads: int

    @classmethod
    def of(cls, model: LanguageModel, plan: Plan, threads: int) -> Recipe:
        """The recipe for `model`, which workers load by its name."""
        fingerprint = model.fingerprint()
        return cls(model.name, str(model.device), model.dtype, fingerprint, model.sweep_fault, plan, threads)

    def model(self) -> LanguageModel:
        """The model, with this process set up for it.

        Raises:
            StudyError: what is loaded under this name has other weights.
        """
        torch.set_num_threads(self.threads)
        model = load(self.name, device=self.device, dtype=self.dtype, check=False)
        if model.fingerprint() != self.fingerprint:
            raise StudyError(
                f"Workers load the model by its name, and {self.name!r} has other weights than yours. Save yours "
                f"with save_pretrained, load it from that folder, and study that; or write workers=0."
            )
        model.sweep_fault = self.sweep_fault
        return model


@contextmanager
def workers_of(backend: Backend, n: int, recipe: Recipe, model: LanguageModel) -> Iterator[Workers]:
    """`n` workers, which end with the block; none: `model` itself traces."""
    if n < 0 or backend not in ("local", "ray"):
        raise StudyError(f'There are no {n} workers of {backend!r}. Write workers=2 and backend="local" or "ray".')
    if n and model.is_sharded:
        raise StudyError("The processes of torchrun trace this model together: write workers=0.")
    if n == 0:
        yield Here(model, recipe.plan)
        return
    if backend == "ray":
        from tracer.studies.on_ray import RayWorkers as Team
    else:
        from tracer.studies.processes import Processes as Team
    team = Team(n, recipe)
    try:
        yield cast(Workers, team)
    finally:
        team.close()


@dataclass(frozen=True)
class Here:
    """Traces in this process."""

    model: LanguageModel
    plan: Plan

    def traced(self, batches: Sequence[Sequence[TokenizedFact]]) -> Iterator[tuple[int, Found]]:
        """Batch after batch."""
        for at, facts in enumerate(batches):
            yield at, trace_batch(self.model, facts, self.plan)


class Attempts:
    """Batches still to be handed out, and how often each was."""

    def __init__(self, n: int) -> None:
        self.waiting = list(range(n))
        self.given = [0] * n

    def next(self) -> int | None:
        """The next batch to hand out, or None."""
        if not self.waiting:
            return None
        at = self.waiting.pop(0)
        self.given[at] += 1
        return at

    def lost(self, at: int) -> None:
        """The worker of this batch died: the batch comes first again.

        Raises:
            StudyError: that happened too often.
        """
        if self.given[at] >= ATTEMPTS:
            raise StudyError(
                f"Each of {ATTEMPTS} workers died on the same facts, most likely for want of memory. Run the study "
                f"again with fewer workers or a smaller max_bytes: it goes on where it was."
            )
        self.waiting.insert(0, at)
