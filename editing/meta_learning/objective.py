"""What training minimises: the edit's loss on other words, and how far the rest moves.

weighted      c_edit L_edit + c_drift L_drift                                   (MEND)
constrained   L_edit + alpha (L_drift - eps),  alpha >= 0 rising by ascent      (KnowledgeEditor)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor


class Objective(Protocol):
    """A frozen value; what training changes of it comes back as another one."""

    def loss(self, edit: Tensor, drift: Tensor) -> Tensor:
        """What is minimised, from both losses of some edits, [row] each."""
        ...

    def stepped(self, drift: float) -> Self:
        """As it is after a step whose mean drift this was."""
        ...

    def validated(self, accuracy: float) -> Self:
        """As it is after a validation in which this share of edits took."""
        ...

    def state(self) -> dict[str, float]:
        """What training may have changed, by the names of its fields."""
        ...

    def at(self, state: Mapping[str, float]) -> Self:
        """The same where training has changed it to this; nothing: as it is."""
        ...


@dataclass(frozen=True)
class Weighted:
    """A weighted sum that stays as it is."""

    edit: float
    drift: float

    def loss(self, edit: Tensor, drift: Tensor) -> Tensor:
        """The mean over edits."""
        return self.edit * edit.mean() + self.drift * drift.mean()

    def stepped(self, drift: float) -> Self:
        """Fixed weights stay as they are after a step."""
        return self

    def validated(self, accuracy: float) -> Self:
        """Fixed weights stay as they are after a validation."""
        return self

    def state(self) -> dict[str, float]:
        """Nothing to keep in a checkpoint: {}."""
        return {}

    def at(self, state: Mapping[str, float]) -> Self:
        """Fixed weights go on from any checkpoint as they are."""
        return self


@dataclass(frozen=True)
class Constrained:
    """The Lagrangian of a bound on the drift, which tightens as edits succeed.

    Attributes:
        margin: eps, the drift allowed.
        least_margin: it never goes below.
        price: alpha.
        ascent: its step size.
        tightening: eps times this after a validation with more than `accurate` of the edits taking.

    Source: De Cao et al. 2021 (arXiv:2104.08164), sec. 3.1 and appendix.
    """

    margin: float = 1e-3
    least_margin: float = 1e-5
    price: float = 1.0
    ascent: float = 0.1
    tightening: float = 0.8
    accurate: float = 0.9

    def loss(self, edit: Tensor, drift: Tensor) -> Tensor:
        """The mean over edits."""
        return edit.mean() + self.price * (drift.mean() - self.margin)

    def stepped(self, drift: float) -> Self:
        """The price rises while the drift is above its margin and falls otherwise, never below 0."""
        return dataclasses.replace(self, price=max(0.0, self.price + self.ascent * (drift - self.margin)))

    def validated(self, accuracy: float) -> Self:
        """A tighter margin where enough edits took."""
        if accuracy <= self.accurate:
            return self
        return dataclasses.replace(self, margin=max(self.least_margin, self.tightening * self.margin))

    def state(self) -> dict[str, float]:
        """The price and the margin, for a checkpoint."""
        return {"price": self.price, "margin": self.margin}

    def at(self, state: Mapping[str, float]) -> Self:
        """With this price and margin."""
        return dataclasses.replace(self, **state)
