"""PyTorch's threads, on which rounding depends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def threads_each(workers: int) -> int:
    """The present number of threads, shared between so many workers."""
    return max(1, torch.get_num_threads() // max(1, workers))


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """PyTorch with `n` threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
