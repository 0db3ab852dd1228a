"""Kills a worker in the middle of its work, as a machine without memory does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable

import psutil


class Killer(threading.Thread):
    """Once something is there kills one of these processes, and remembers which; to be started before the work."""

    def __init__(self, ready: Callable[[], bool], processes: Callable[[], list[int]]) -> None:
        super().__init__(daemon=True)
        self.ready, self.processes, self.killed = ready, processes, 0

    def run(self) -> None:
        for _ in range(300_000):
            if self.ready() and (there := self.processes()):
                self.killed = there[0]
                os.kill(self.killed, signal.SIGKILL)
                return
            time.sleep(0.002)


def children() -> list[int]:
    """Local workers of this process."""
    return [child.pid or 0 for child in multiprocessing.active_children()]


def actors_at_work() -> list[int]:
    """Actors of the Ray that this process has started, each in the middle of a unit."""
    below = psutil.Process().children(recursive=True)
    return [process.pid for process in below if "ray::_Actor.answer" in " ".join(process.cmdline())]


def is_alive(process: int) -> bool:
    """Whether a process still runs."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
