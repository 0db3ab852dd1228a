"""What came of a training, and what it took."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from editing.training.checkpoint import State


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """How a training went.

    Attributes:
        steps: taken.
        best: the validation record of what was kept.
        early: no validation had been better for as long as its patience.
        seconds: in all, over every process that took part.
        peak_bytes: the most memory held: by the device's tensors, on a CPU by this process.
        skipped: passes whose gradient was not finite.
        curve: one record a step and a validation ("validation": True).
    """

    steps: int
    best: Mapping[str, Any]
    early: bool
    seconds: float
    peak_bytes: int
    skipped: int
    curve: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, state: State, device: torch.device, *, early: bool) -> TrainingResult:
        """Of a training that has ended."""
        held = peak_bytes(device)
        return cls(state.step, state.best_record, early, state.seconds, held, state.skipped, tuple(state.curve))


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far: by tensors on a GPU, else by this process; 0 where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
