"""Seconds of the wall clock, and where those of an edit went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from editing.edit import Edit
from tracer.model import LanguageModel

Step = Literal["values", "statistics", "keys", "solve", "write", "scores"]


def now(model: LanguageModel) -> float:
    """Seconds of the wall clock, once the device has done what was asked of it."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


@contextmanager
def timed(edit: Edit, step: Step) -> Iterator[None]:
    """Adds the block's seconds to `edit.summary["seconds"]`."""
    begun = now(edit.applied_to)
    yield
    add_seconds(edit, step, now(edit.applied_to) - begun)


def add_seconds(edit: Edit, step: Step, seconds: float) -> None:
    """Adds seconds that were measured elsewhere."""
    before = edit.summary.get("seconds", {})
    edit.summary = {**edit.summary, "seconds": {**before, step: before.get(step, 0.0) + seconds}}
