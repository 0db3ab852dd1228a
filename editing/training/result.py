"""What came of a training, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from editing.peak_memory import peak_bytes
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
