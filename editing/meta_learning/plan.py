"""How long to train, on how much at once, and when to look."""

from __future__ import annotations

from dataclasses import dataclass

from editing.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Settings of the training itself. Its authors trained MEND for up to a million edits, ten a step.

    Attributes:
        steps: of the optimiser, at most.
        batch: edits in each step.
        together: of them in one pass; gradients add up over passes.
        every: steps from one validation to the next; each also writes a checkpoint.
        patience: steps without a better validation after which it ends.
        held_out: records to validate on, where none are given.
        own_words: probability that success is measured on the edited prompt itself, not on a rephrase.
        clip: largest norm of the gradient.
    """

    steps: int = 2_000
    batch: int = 10
    together: int = 10
    every: int = 100
    patience: int = 1_000
    held_out: int = 100
    own_words: float = 0.0
    clip: float = 100.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "together", "every", "patience", "held_out"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name}={getattr(self, name)} trains nothing. Write a whole number from 1 up.")
        if not 0 <= self.own_words <= 1:
            raise RequestError(f"own_words={self.own_words} is no probability. Write own_words=0.5.")
        if not self.clip > 0:
            raise RequestError(f"clip={self.clip} leaves no gradient. Write clip=100.0.")
