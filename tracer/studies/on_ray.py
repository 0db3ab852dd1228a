"""Workers of a Ray cluster: an actor each, on whichever machine Ray finds room.

Ray is asked for nothing but places to run: batches are handed out, and lost ones handed out again,
as for local processes. Every machine must be able to load the model by the same name.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from tracer.errors import MissingPackageError, StudyError
from tracer.fact import TokenizedFact
from tracer.studies.batches import trace_batch
from tracer.studies.workers import Attempts, Found, Recipe


class RayWorkers:
    """`n` Ray actors that trace batches; those that die are replaced.

    A running cluster is used (`ray start --head`, RAY_ADDRESS); without one Ray starts on this machine.
    """

    def __init__(self, n: int, recipe: Recipe) -> None:
        self.ray = ray = _ray()
        self.started = not ray.is_initialized()
        if self.started:
            ray.init(
                address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False, logging_level=30
            )
        gpus = 1 if recipe.device.startswith("cuda") else 0
        self.actor = ray.remote(num_cpus=recipe.threads, num_gpus=gpus, max_restarts=0)(_Actor)
        self.n, self.recipe = n, recipe
        self.idle: list[Any] = []
        self._check_room(gpus)

    def traced(self, batches: Sequence[Sequence[TokenizedFact]]) -> Iterator[tuple[int, Found]]:
        """See `Workers.traced`."""
        attempts = Attempts(len(batches))
        busy: dict[Any, tuple[Any, int]] = {}
        while True:
            while (len(busy) < self.n) and (at := attempts.next()) is not None:
                actor = self.idle.pop() if self.idle else self.actor.remote(self.recipe)
                busy[actor.trace.remote(list(batches[at]))] = actor, at
            if not busy:
                return
            (answer, *_), _ = self.ray.wait(list(busy), num_returns=1)
            actor, at = busy.pop(answer)
            try:
                found: Found = pickle.loads(self.ray.get(answer))
            except self.ray.exceptions.RayTaskError as error:
                raise StudyError(f"A worker stopped: {error.cause}") from error
            except self.ray.exceptions.RayError:  # it died
                attempts.lost(at)
                continue
            self.idle.append(actor)
            yield at, found

    def _check_room(self, gpus: int) -> None:
        """Raises StudyError where a worker would wait for ever for a place."""
        there = self.ray.cluster_resources()
        room = int(there.get("CPU", 0) // self.recipe.threads)
        if gpus:
            room = min(room, int(there.get("GPU", 0)))
        if self.n > room:
            self.close()
            raise StudyError(
                f"This Ray cluster has room for {room} workers of {self.recipe.threads} threads"
                f"{' and a GPU' if gpus else ''} each, not for {self.n}. Write workers={max(1, room)} or fewer threads."
            )

    def close(self) -> None:
        """Gives the actors back, and ends Ray if it was started here."""
        for actor in self.idle:
            self.ray.kill(actor)
        if self.started:
            self.ray.shutdown()


class _Actor:
    """A model on a machine of the cluster."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.model = recipe, recipe.model()

    def pid(self) -> int:
        """The process that it is, on its machine."""
        return os.getpid()

    def trace(self, facts: Sequence[TokenizedFact]) -> bytes:
        """As `trace_batch`, pickled: arrays that Ray itself hands over cannot be written to."""
        return pickle.dumps(trace_batch(self.model, facts, self.recipe.plan))


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.exceptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackageError(
            "Ray is not installed. Write pip install 'locate-then-edit[ray]', or backend=\"local\"."
        ) from error
    return ray
