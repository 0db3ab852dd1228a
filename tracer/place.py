"""From an average trace to the layer to edit, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracer.effect import AverageTrace, Estimate
from tracer.errors import SiteError
from tracer.fact import ROLES, check_roles

RESAMPLES = 2000


@dataclass(frozen=True)
class Place:
    """Where the facts of an average are decided.

    Attributes:
        kind, role, layer: the site; for `mlp` and `attn` the centre of the window.
        estimate: AIE there.
        share: how often each layer came first when the facts were resampled; the spread of the choice.
    """

    kind: str
    role: str
    layer: int
    estimate: Estimate
    share: Mapping[int, float] = field(default_factory=dict)

    @property
    def effect(self) -> float:
        """AIE at the place, a difference of probabilities."""
        return self.estimate.mean

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `effect` over facts."""
        return self.estimate.interval

    def record(self) -> dict[str, Any]:
        """The place as JSON values."""
        return {
            "kind": self.kind,
            "role": self.role,
            "layer": self.layer,
            "effect": self.effect,
            "interval": self.interval,
            "facts": self.estimate.n,
            "share_of_resamples": {str(layer): share for layer, share in self.share.items()},
        }

    def __str__(self) -> str:
        others = ", ".join(f"{layer}: {share:.0%}" for layer, share in self.share.items() if share >= 0.05)
        return f"{self.kind} at layer {self.layer}, {self.role}: AIE {self.estimate}; first in resamples: {others}"


def locate(average: AverageTrace, *, kind: str | None = None, role: str = "last subject token", seed: int = 0) -> Place:
    """The layer with the largest AIE of `kind` at `role`.

    Args:
        average: from `tracer.average`.
        kind: default "mlp", or the average's only map.
        role: of the token; ROME edits at the last subject token.
        seed: of the bootstrap over facts that gives `share`.

    Raises:
        SiteError: the average has no such map, or no fact has a token of this role.

    Source: Meng et al. 2022, sec. 2.2 and 3.1 (the peak of the MLP's AIE at the last subject token).
    """
    check_roles([role])
    kind = kind or ("mlp" if "mlp" in average.effects else next(iter(average.effects)))
    if kind not in average.effects:
        raise SiteError(f"This average has no {kind!r}; it has {', '.join(average.effects)}.")
    _, layer, estimate = average.peak(kind, role)
    values = average.effects[kind][:, ROLES.index(role)]
    values = values[~np.isnan(values).any(1)]
    picks = np.random.RandomState(seed).randint(len(values), size=(RESAMPLES, len(values)))
    firsts = np.bincount(values[picks].mean(1).argmax(1), minlength=values.shape[1]) / RESAMPLES
    share = {int(n): float(firsts[n]) for n in np.argsort(-firsts, kind="stable") if firsts[n] > 0}
    return Place(kind, role, layer, estimate, share)
