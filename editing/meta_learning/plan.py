"""How long to train, on how much at once, and when to look."""

from __future__ import annotations

from dataclasses import dataclass

from editing.setting_checks import check_above_zero, check_share, check_whole


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Settings of the training itself. MEND's authors trained for up to a million edits, ten a step.

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
        whole = {"steps": 2_000, "batch": 10, "together": 10, "every": 100, "patience": 1_000, "held_out": 100}
        check_whole(self, whole)
        check_share(self, {"own_words": 0.5})
        check_above_zero(self, {"clip": 100.0})
