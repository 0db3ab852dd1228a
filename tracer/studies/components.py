"""Would more noise samples narrow the interval, or only more facts?

A fact's effect is measured with error, because only S noise samples are drawn for it:
    IE_fs = AIE + between_f + within_fs        Var(AIE) = (between + within / S) / F
with F facts, `between` the variance of true effects over facts and `within` that over samples of one
fact. Both are estimated by the one-way analysis of variance with random effects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tracer.effect.estimate import over_facts
from tracer.errors import SiteError, StudyError
from tracer.fact import ROLES, check_roles
from tracer.studies.study import Study


@dataclass(frozen=True)
class Components:
    """What the variance of an average effect is made of.

    Attributes:
        between: variance of the true effect over facts; 0 where the samples' noise explains all of it.
        within: variance over noise samples, within a fact.
        facts, samples: F and S of the study.
    """

    kind: str
    role: str
    layer: int
    between: float
    within: float
    facts: int
    samples: int

    def half_width(self, *, facts: int | None = None, samples: int | None = None) -> float:
        """Half of the 95 % interval to expect with other numbers, 1.96 standard errors."""
        n, s = facts or self.facts, samples or self.samples
        return 1.96 * math.sqrt((self.between + self.within / s) / n)

    @property
    def share_of_samples(self) -> float:
        """How much of the interval's square comes from drawing too few samples, in [0, 1]."""
        whole = self.between + self.within / self.samples
        return self.within / self.samples / whole if whole else 0.0

    def __str__(self) -> str:
        now, more = self.half_width(), self.half_width(samples=4 * self.samples)
        helps = "more facts" if self.share_of_samples < 0.5 else "more noise samples, or more facts,"
        return (
            f"{self.kind} at layer {self.layer}, {self.role}: ± {now:.3f} from {self.facts} facts of {self.samples} "
            f"samples; ± {more:.3f} with {4 * self.samples} samples, ± {self.half_width(facts=4 * self.facts):.3f} "
            f"with {4 * self.facts} facts. Noise samples make {self.share_of_samples:.0%} of the variance: {helps} "
            f"would narrow it."
        )

    __repr__ = __str__  # what a notebook shows


def sample_components(study: Study, kind: str, *, role: str | None = None, layer: int | None = None) -> Components:
    """The components at one site; default: where the average effect of `kind` is largest.

    The draws of facts whose subjects have equally many tokens are the same numbers. What such facts have in
    common because of that is counted as `between`, so `within` is, if anything, too small.

    Raises:
        SiteError: the study has no such map or layer.
        StudyError: fewer than two facts have the role, or only one sample was drawn.
    """
    if role is not None:
        check_roles([role])
    peak_role, peak_layer, _ = study.average.peak(kind, role)
    role, layer = role or peak_role, peak_layer if layer is None else layer
    n_layers = study.average.effects[kind].shape[2]
    if not 0 <= layer < n_layers:
        raise SiteError(f"There is no layer {layer}; this study has layers 0 to {n_layers - 1}.")
    effects = []
    for _, result in study.traces():
        tokens = [n for n, name in enumerate(result.roles) if name == role]
        if tokens:
            found = result.restored[kind][tokens, layer]  # NaN at tokens that the other stack reads
            effects.append(result.sample_effects(over_facts(found, np.nanmean)))
    return components_of(np.array(effects), kind=kind, role=role, layer=layer)


def components_of(effects: np.ndarray, *, kind: str = "", role: str = ROLES[2], layer: int = 0) -> Components:
    """The components of effects [fact, sample]; errors as `sample_components`."""
    effects = effects[~np.isnan(effects).any(1)] if len(effects) else effects
    n_facts, samples = effects.shape if effects.ndim == 2 else (0, 0)
    if n_facts < 2 or samples < 2:
        raise StudyError(
            f"Traced at the {role}: {n_facts} fact{'' if n_facts == 1 else 's'}, {samples} sample"
            f"{'' if samples == 1 else 's'} of each. Components need two facts and two samples."
        )
    within = float(effects.var(1, ddof=1).mean())
    between = max(0.0, float(effects.mean(1).var(ddof=1)) - within / samples)
    return Components(kind, role, layer, between, within, n_facts, samples)
