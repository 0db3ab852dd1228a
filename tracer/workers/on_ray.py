"""Workers of a Ray cluster: an actor each, on whichever machine Ray finds room.

Ray is asked for nothing but places to run: units are handed out, and lost ones handed out again,
as for local processes. Every machine must be able to load the model by the same name.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tracer.errors import MissingPackageError, WorkerError
from tracer.workers.attempts import GIVEN_UP, Attempts, free_number
from tracer.workers.job import Job
from tracer.workers.recipe import Recipe


class RayWorkers:
    """`n` Ray actors that do units; those that die are replaced.

    A running cluster is used (`ray start --head`, RAY_ADDRESS); without one Ray starts on this machine.

    Attributes:
        actors: those that live, by their number.
    """

    def __init__(self, n: int, job: Job[Any, Any], recipe: Recipe) -> None:
        self.ray = ray = _ray()
        self.started = not ray.is_initialized()
        if self.started:
            ray.init(
                address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False, logging_level=30
            )
        gpus = 1 if recipe.device.startswith("cuda") else 0
        self.kind = ray.remote(num_cpus=recipe.threads, num_gpus=gpus, max_restarts=0)(_Actor)
        self.n, self.job, self.recipe = n, job, recipe
        self.actors: dict[int, Any] = {}
        self._check_room(gpus)

    def answers(self, units: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Team.answers`."""
        attempts = Attempts(len(units))
        busy: dict[Any, tuple[int, int]] = {}  # answer to come: worker, unit
        while True:
            while len(busy) < self.n and (at := attempts.next()) is not None:
                number = self._idle({number for number, _ in busy.values()})
                busy[self.actors[number].answer.remote(units[at])] = number, at
            if not busy:
                return
            (coming, *_), _ = self.ray.wait(list(busy), num_returns=1)
            number, at = busy.pop(coming)
            try:
                answer = pickle.loads(self.ray.get(coming))
            except self.ray.exceptions.RayTaskError as error:
                raise WorkerError(f"A worker stopped: {type(error.cause).__name__}: {error.cause}") from error
            except self.ray.exceptions.RayError:  # it died
                del self.actors[number]
                if not attempts.again(at):
                    yield at, self.job.given_up(units[at], GIVEN_UP)
                continue
            yield at, answer

    def close(self) -> None:
        """Ends all actors, also those at work, and Ray if it was started here."""
        for actor in self.actors.values():
            self.ray.kill(actor)
        if self.started:
            self.ray.shutdown()

    def _idle(self, at_work: set[int]) -> int:
        """The number of an actor that waits for work, a new one if there is none."""
        for number in self.actors:
            if number not in at_work:
                return number
        number = free_number(set(self.actors))
        self.actors[number] = self.kind.remote(self.job, self.recipe, number)
        return number

    def _check_room(self, gpus: int) -> None:
        """Raises WorkerError where a worker would wait for ever for a place."""
        there = self.ray.cluster_resources()
        room = int(there.get("CPU", 0) // self.recipe.threads)
        if gpus:
            room = min(room, int(there.get("GPU", 0)))
        if self.n > room:
            self.close()
            raise WorkerError(
                f"This Ray cluster has room for {room} workers of {self.recipe.threads} threads"
                f"{' and a GPU' if gpus else ''} each, not for {self.n}. Write workers={max(1, room)} or fewer threads."
            )


class _Actor:
    """A worker on a machine of the cluster."""

    def __init__(self, job: Job[Any, Any], recipe: Recipe, number: int) -> None:
        self.job, self.recipe, self.number = job, recipe, number
        self.do: Callable[[Any], Any] | None = None

    def pid(self) -> int:
        """The process that it is, on its machine."""
        return os.getpid()

    def answer(self, unit: Any) -> bytes:
        """The unit's answer, pickled: arrays that Ray itself hands over cannot be written to."""
        if self.do is None:  # not made with the actor: an error there would look like a death
            self.do = self.job.begun(self.recipe.opened(), self.number)
        return pickle.dumps(self.do(unit))


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.exceptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackageError(
            "Ray is not installed. Write pip install 'locate-then-edit[ray]', or backend=\"local\"."
        ) from error
    return ray
