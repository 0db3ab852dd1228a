"""Run jobs on a few threads: each walks its own samples through the model's modules.

Small products keep a core busier than half of a large one does: a thread a core, each with one
thread of its own for the matrix products.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed

import torch

Check = Callable[[], None]


def thread_count(device: torch.device, n_jobs: int) -> int:
    """How many threads to use: one a core on a CPU, one for a GPU, never more than there are jobs."""
    return min(torch.get_num_threads(), n_jobs) if device.type == "cpu" else 1


def in_threads(jobs: Sequence[Callable[[Check], None]], n_threads: int) -> None:
    """Runs every job in inference mode; the first error, or Ctrl-C, stops them all.

    Each job is given a function to call now and then, which raises once another one has failed.
    """
    if n_threads == 1:
        with torch.inference_mode():
            for job in jobs:
                job(lambda: None)
        return
    available, stopped = torch.get_num_threads(), threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise CancelledError

    def run(job: Callable[[Check], None]) -> None:
        torch.set_num_threads(max(1, available // n_threads))
        with torch.inference_mode():
            job(check)

    try:
        with ThreadPoolExecutor(n_threads) as pool:
            futures = [pool.submit(run, job) for job in jobs]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                stopped.set()
                for future in futures:
                    future.cancel()
                raise
    finally:
        torch.set_num_threads(available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine had no memory left."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
