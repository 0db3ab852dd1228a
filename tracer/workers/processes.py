"""Workers as processes of this machine, each with a pipe to the process that wants the answers.

They start anew ("spawn"), so a script that uses them keeps its work under `if __name__ == "__main__":`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any

from tracer.errors import WorkerError
from tracer.workers.attempts import GIVEN_UP, Attempts, free_number
from tracer.workers.job import Job
from tracer.workers.recipe import Recipe

# A new process, without the threads and locks that a copy of this one would have.
_SPAWN = multiprocessing.get_context("spawn")


class Processes:
    """`n` local processes that do units; those that die are replaced."""

    def __init__(self, n: int, job: Job[Any, Any], recipe: Recipe) -> None:
        self.n, self.job, self.recipe = n, job, recipe
        self.workers: list[_Worker] = []

    def answers(self, units: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Team.answers`."""
        attempts = Attempts(len(units))
        while True:
            self._hand_out(units, attempts)
            busy = {worker.pipe: worker for worker in self.workers if worker.at is not None}
            if not busy:
                return
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # pyright: ignore[reportArgumentType]
                at, worker.at = worker.at, None
                assert at is not None
                try:
                    answer = worker.pipe.recv()
                except (EOFError, OSError):  # it died
                    self._bury(worker)
                    if not attempts.again(at):
                        yield at, self.job.given_up(units[at], GIVEN_UP)
                    continue
                if isinstance(answer, _Stopped):
                    raise WorkerError(f"A worker stopped: {answer.reason}")
                yield at, answer

    def close(self) -> None:
        """Ends all workers: those at work at once, the others by closing their pipes."""
        for worker in list(self.workers):
            if worker.at is not None:
                worker.process.terminate()
            self._bury(worker)

    def _hand_out(self, units: Sequence[Any], attempts: Attempts) -> None:
        """Gives every idle worker a unit; starts workers while there are units for them."""
        idle = [worker for worker in self.workers if worker.at is None]
        while len(self.workers) < self.n and len(idle) < len(attempts.waiting):
            number = free_number({worker.number for worker in self.workers})
            idle.append(_Worker(self.job, self.recipe, number))
            self.workers.append(idle[-1])
        for worker in idle:
            at = attempts.next()
            if at is None:
                return
            worker.at = at
            with suppress(OSError):  # a dead one is found when its answer is awaited
                worker.pipe.send(units[at])

    def _bury(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.pipe.close()
        worker.process.join()
        worker.process.close()


class _Worker:
    """A process, this end of its pipe, and the place of the unit it has."""

    def __init__(self, job: Job[Any, Any], recipe: Recipe, number: int) -> None:
        self.number = number
        self.at: int | None = None
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(
            target=_work, args=(theirs, job, recipe, number), daemon=True, name=f"worker {number}"
        )
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does


@dataclass(frozen=True)
class _Stopped:
    """Why a worker cannot go on."""

    reason: str


def _work(pipe: Connection, job: Job[Any, Any], recipe: Recipe, number: int) -> None:
    """Answers each unit, until nobody asks; an error is told and ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks, who ends the workers
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        do = job.begun(recipe.opened(), number)
        while True:
            pipe.send(do(pipe.recv()))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        with suppress(OSError):
            pipe.send(_Stopped(f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    """Ends this process, in the middle of a unit, when the one that wants its answer was killed.

    Else it would write on beside the workers of whoever takes up the work.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
