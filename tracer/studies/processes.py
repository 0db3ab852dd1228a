"""Workers as processes of this machine, each with a pipe to the study.

They start anew ("spawn"), so a script that uses them keeps its work under `if __name__ == "__main__":`.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from tracer.errors import StudyError
from tracer.fact import TokenizedFact
from tracer.studies.batches import trace_batch
from tracer.studies.workers import Attempts, Found, Recipe

# A new process, without the threads and locks that a copy of this one would have.
_SPAWN = multiprocessing.get_context("spawn")


class Processes:
    """`n` local processes that trace batches; those that die are replaced."""

    def __init__(self, n: int, recipe: Recipe) -> None:
        self.n, self.recipe = n, recipe
        self.workers: list[_Worker] = []

    def traced(self, batches: Sequence[Sequence[TokenizedFact]]) -> Iterator[tuple[int, Found]]:
        """See `Workers.traced`.

        Raises:
            StudyError: a worker cannot work, or too many died on one batch.
        """
        attempts = Attempts(len(batches))
        while True:
            self._hand_out(batches, attempts)
            busy = {worker.pipe: worker for worker in self.workers if worker.at is not None}
            if not busy:
                return
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # pyright: ignore[reportArgumentType]
                at, worker.at = worker.at, None
                assert at is not None
                try:
                    found = worker.pipe.recv()
                except (EOFError, OSError):  # it died
                    self._bury(worker)
                    attempts.lost(at)
                    continue
                if isinstance(found, str):
                    raise StudyError(f"A worker stopped: {found}")
                yield at, found

    def close(self) -> None:
        """Ends all workers."""
        for worker in list(self.workers):
            worker.process.terminate()
            self._bury(worker)

    def _hand_out(self, batches: Sequence[Sequence[TokenizedFact]], attempts: Attempts) -> None:
        """Gives every idle worker a batch; starts workers while there are batches for them."""
        idle = [worker for worker in self.workers if worker.at is None]
        while len(self.workers) < self.n and len(idle) < len(attempts.waiting):
            idle.append(_Worker(self.recipe))
            self.workers.append(idle[-1])
        for worker in idle:
            at = attempts.next()
            if at is None:
                return
            worker.at = at
            with suppress(OSError):  # a dead one is found when its answer is awaited
                worker.pipe.send(batches[at])

    def _bury(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.pipe.close()
        worker.process.join()
        worker.process.close()


class _Worker:
    """A process, this end of its pipe, and the batch it has."""

    def __init__(self, recipe: Recipe) -> None:
        self.at: int | None = None
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_work, args=(theirs, recipe), daemon=True, name="tracer study worker")
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does


def _work(pipe: Connection, recipe: Recipe) -> None:
    """Answers each batch with its traces, until the study ends; an error is told and ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the study, which ends its workers
    try:
        model = recipe.model()
        while True:
            pipe.send(trace_batch(model, pipe.recv(), recipe.plan))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        with suppress(OSError):
            pipe.send(f"{type(error).__name__}: {error}")
