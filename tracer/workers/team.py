"""Who does the units of a job: this process, local processes, or a Ray cluster's.

A worker holds a model of its own and gets one unit at a time. A worker that dies is replaced and its unit handed
out again, so none is lost, and none answered twice. Units do not depend on who does them: results equal those of
one process, bit for bit, as long as machines, threads and software are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar, cast

from tracer.errors import WorkerError
from tracer.model import LanguageModel
from tracer.workers.job import Job
from tracer.workers.recipe import Recipe

Backend = Literal["local", "ray"]
Unit = TypeVar("Unit", contravariant=True)
Answer = TypeVar("Answer", covariant=True)


class Team(Protocol[Unit, Answer]):
    """Workers that do a job's units: this process, others, or Ray actors."""

    def answers(self, units: Sequence[Unit]) -> Iterator[tuple[int, Answer]]:
        """Each unit's place in `units` with its answer, once, as they come.

        Raises:
            WorkerError: a worker cannot work.
        """
        ...


@contextmanager
def team_of(
    backend: Backend, n: int, job: Job[Unit, Answer], model: LanguageModel, threads: int
) -> Iterator[Team[Unit, Answer]]:
    """`n` workers of `threads` threads, which end with the block; none: this process, with `model` itself.

    Raises:
        WorkerError: there can be no such workers.
    """
    if n < 0 or backend not in ("local", "ray"):
        raise WorkerError(f'workers={n} of {backend!r} cannot work. Write workers=2 and backend="local" or "ray".')
    if n and model.is_sharded:
        raise WorkerError("The processes of torchrun run this model together: write workers=0.")
    if n == 0:
        yield Here(job, model)
        return
    if backend == "ray":
        from tracer.workers.on_ray import RayWorkers as Workers
    else:
        from tracer.workers.processes import Processes as Workers
    team = Workers(n, job, Recipe.of(model, threads))
    try:
        yield cast(Team[Unit, Answer], team)
    finally:
        team.close()


@dataclass(frozen=True)
class Here(Generic[Unit, Answer]):
    """Does units in this process."""

    job: Job[Unit, Answer]
    model: LanguageModel

    def answers(self, units: Sequence[Unit]) -> Iterator[tuple[int, Answer]]:
        """Does unit after unit in this process; see `Team.answers`."""
        do = self.job.begun(self.model, 0)
        for at, unit in enumerate(units):
            yield at, do(unit)
