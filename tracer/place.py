"""From an average trace to the layer to edit, and how sure that is.

The layer with the largest AIE of some facts need not be that of other facts. So the facts are
resampled: how often each layer comes first, and which ranks it takes, says how firm the choice is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from tracer.effect import AverageTrace, Estimate
from tracer.effect.estimate import own_layers
from tracer.effect.resample import RESAMPLES, percentile_interval, resampled_means
from tracer.errors import FactError, SiteError
from tracer.fact import ROLES, check_roles

SURE, LIKELY = 0.95, 0.7


@dataclass(frozen=True)
class RankedLayer:
    """One layer of a ranking; all intervals are 95 % percentile intervals over resampled facts.

    Attributes:
        rank: 1 for the layer that does most towards the clean answer.
        effect: AIE, a difference of the metric (by default p(answer)), between `low` and `high`.
        behind: how much less it does than the first layer, paired by fact, between `behind_low` and `behind_high`.
        best_rank, worst_rank: the ranks that it takes in the resamples.
        share: of the resamples in which it came first.
    """

    rank: int
    layer: int
    effect: float
    low: float
    high: float
    behind: float
    behind_low: float
    behind_high: float
    best_rank: int
    worst_rank: int
    share: float


@dataclass(frozen=True)
class Place:
    """Where the facts of an average are decided.

    Attributes:
        kind, role, layer: the site; for `mlp` and `attn` the centre of the window.
        estimate: AIE there.
        share: how often each layer came first when the facts were resampled; the spread of the choice.
        ranking: every layer, from the one that does most down.
        sense: 1, or -1 for a metric that falls towards the clean answer, whose first layer has the lowest AIE.
    """

    kind: str
    role: str
    layer: int
    estimate: Estimate
    share: Mapping[int, float] = field(default_factory=dict)
    ranking: tuple[RankedLayer, ...] = ()
    sense: int = 1

    @property
    def effect(self) -> float:
        """AIE at the place, a difference of the metric (by default p(answer))."""
        return self.estimate.mean

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `effect` over facts."""
        return self.estimate.interval

    @property
    def rivals(self) -> list[int]:
        """Other layers that these facts do not tell apart from the first: the gap's interval reaches 0."""
        return [row.layer for row in self.ranking[1:] if row.behind_low <= 0]

    def describe(self) -> str:
        """How sure the choice is, in words."""
        first = self.share.get(self.layer, 0.0)
        site = f"layer {self.layer} ({self.kind}, {self.role})"
        facts = f"{self.estimate.n} fact{'' if self.estimate.n == 1 else 's'}"
        if self.estimate.n < 2:
            return f"One fact has its largest effect at {site}; nothing says that others have it there too."
        if min(self.sense * end for end in self.interval) <= 0:
            return (
                f"No layer stands out: the largest average effect, at {site}, is {self.estimate}, which these {facts} "
                f"do not tell from 0."
            )
        sure = "It is surely" if first >= SURE else "It is probably" if first >= LIKELY else "It may be"
        said = f"{sure} {site}: AIE {self.estimate}, first in {first:.0%} of resamples of {facts}."
        if not self.rivals:
            return f"{said} Every other layer is clearly behind."
        return f"{said} Layers not told apart from it: {', '.join(map(str, self.rivals))}."

    def to_frame(self) -> pd.DataFrame:
        """The ranking, one row a layer; columns as in `RankedLayer`."""
        names = [one.name for one in dataclasses.fields(RankedLayer)]
        return pd.DataFrame([dataclasses.asdict(row) for row in self.ranking], columns=pd.Index(names))

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
            "ranking": [dataclasses.asdict(row) for row in self.ranking],
        }

    def __str__(self) -> str:
        others = ", ".join(f"{layer}: {share:.0%}" for layer, share in self.share.items() if share >= 0.05)
        return f"{self.kind} at layer {self.layer}, {self.role}: AIE {self.estimate}; first in resamples: {others}"

    __repr__ = __str__  # what a notebook shows


def locate(average: AverageTrace, *, kind: str | None = None, role: str = "last subject token", seed: int = 0) -> Place:
    """The layer with the largest AIE of `kind` at `role` (kl, rank: the lowest), and the ranking of all layers.

    Args:
        average: from `tracer.average` or `Study.average`.
        kind: default "mlp", or the average's only map.
        role: of the token; ROME edits at the last subject token.
        seed: of the bootstrap over facts (2,000 resamples) that gives `share` and `ranking`.

    Raises:
        FactError: no average.
        SiteError: the average has no such map, or no fact has a token of this role.

    Source: Meng et al. 2022, sec. 2.2 and 3.1 (the peak of the MLP's AIE at the last subject token).
    """
    if not isinstance(average, AverageTrace):
        raise FactError(f"A {type(average).__name__} is no average. Of a study write tracer.locate(study.average).")
    check_roles([role])
    kind = kind or ("mlp" if "mlp" in average.effects else next(iter(average.effects)))
    if kind not in average.effects:
        raise SiteError(f"This average has no {kind!r}; it has {', '.join(average.effects)}.")
    _, layer, estimate = average.peak(kind, role)
    values = average.effects[kind][:, ROLES.index(role)]
    layers = own_layers(values)
    values = values[:, layers]
    values = values[~np.isnan(values).any(1)]
    means, sense = resampled_means(values, seed=seed), average.settings.sense
    firsts = np.bincount((sense * means).argmax(1), minlength=values.shape[1]) / RESAMPLES
    share = {int(layers[n]): float(firsts[n]) for n in np.argsort(-firsts, kind="stable") if firsts[n] > 0}
    ranking = _ranking(values.mean(0), means, firsts, sense, layers)
    return Place(kind, role, layer, estimate, share, ranking, sense)


def _ranking(
    aie: np.ndarray, means: np.ndarray, firsts: np.ndarray, sense: int, layers: np.ndarray
) -> tuple[RankedLayer, ...]:
    """These layers by AIE [layer], with what the resamples' means [resample, layer] say of each."""
    order = np.argsort(-sense * aie, kind="stable")
    low, high = percentile_interval(means)
    gap_low, gap_high = percentile_interval(sense * (means[:, order[:1]] - means))
    ranks = (-sense * means).argsort(1, kind="stable").argsort(1) + 1
    best, worst = np.percentile(ranks, [2.5, 97.5], axis=0, method="nearest")
    return tuple(
        RankedLayer(
            rank=place + 1,
            layer=int(layers[n]),
            effect=float(aie[n]),
            low=float(low[n]),
            high=float(high[n]),
            behind=float(sense * (aie[order[0]] - aie[n])),
            behind_low=float(gap_low[n]),
            behind_high=float(gap_high[n]),
            best_rank=int(best[n]),
            worst_rank=int(worst[n]),
            share=float(firsts[n]),
        )
        for place, n in enumerate(order)
    )
