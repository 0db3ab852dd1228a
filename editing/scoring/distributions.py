"""A model's distributions over next tokens, kept to say how far edits move them: KL(before, after) in nats.

They are large, a number for each word of the vocabulary: what does not fit into `max_bytes` has no KL.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from editing.scoring.scores import Pair

MAX_BYTES = 2**28


class Distributions:
    """Log-probabilities at the target tokens of some pairs, to say how far an edit moves them."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.room = max_bytes
        self._kept: dict[tuple[Pair, int], Tensor] = {}

    def keep(self, pair: Pair, place: int, log_probs: Tensor) -> None:
        """Keeps log-probabilities [vocab] at one target token, while there is room."""
        size = log_probs.nbytes
        if size <= self.room and (pair, place) not in self._kept:
            self.room -= size
            self._kept[pair, place] = log_probs.clone()

    def divergence(self, pair: Pair, place: int, log_probs: Tensor) -> float:
        """KL(kept, log_probs) at one target token in nats; NaN where nothing was kept."""
        kept = self._kept.get((pair, place))
        if kept is None:
            return math.nan
        return float(torch.nn.functional.kl_div(log_probs, kept, reduction="sum", log_target=True).clamp(min=0))

    def __contains__(self, pair: Pair) -> bool:
        return (pair, 0) in self._kept

    def forget(self) -> None:
        """Drops everything and frees the room it took."""
        self.room += sum(kept.nbytes for kept in self._kept.values())
        self._kept.clear()


class Moved:
    """How far the kept distributions have moved: shown to `target_scores` as one of its visitors.

    Attributes:
        values: KL in nats at each target token whose distribution was kept, by pair.
    """

    def __init__(self, *kept: Distributions) -> None:
        self._kept = kept
        self.values: dict[Pair, list[float]] = {}

    def __call__(self, pair: Pair, place: int, log_probs: Tensor) -> None:
        """Notes the divergence at one target token."""
        known = [found for kept in self._kept if not math.isnan(found := kept.divergence(pair, place, log_probs))]
        if known:
            self.values.setdefault(pair, []).append(known[0])
