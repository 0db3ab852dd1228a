"""Screening: a first-order estimate of every site, exact effects where they matter.

The estimates rank all sites; the largest `keep` are restored one by one, and so is a random sample
of the others, which bounds what was missed. Were M of the N others larger than anything in the
sample of n, the chance that it holds none of them would be
    C(N - M, n) / C(N, n).
With the least M for which this is 1 - confidence or less, fewer than M exceed the sample's largest
effect at that confidence. Nothing is assumed about the effects. (Kramar et al. 2024,
arXiv:2403.00745, also bound what AtP missed from random samples, with other assumptions.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tracer.answer import probability
from tracer.corrupt import Corruption
from tracer.effect import TraceResult
from tracer.errors import SiteError
from tracer.fact import Fact, TokenizedFact
from tracer.first_order.attribution import Method, attribute
from tracer.first_order.prepared import prepare
from tracer.model import LanguageModel
from tracer.passes import Passes
from tracer.plan import Plan
from tracer.progress import bar
from tracer.site import Kind

Cell = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Screening:
    """One map, estimated everywhere and exact in part.

    Attributes:
        kind: which map.
        estimate: the first-order trace.
        exact: exact indirect effects, mean over draws, [token, layer]; NaN where not computed.
        kept: cells (token, layer) with the largest estimates, largest first.
        sampled: cells checked at random.
        n_left: how many cells the sample was drawn from: those after the subject's start that were not kept.
        confidence: of `may_exceed`.
    """

    kind: Kind
    estimate: TraceResult
    exact: np.ndarray
    kept: tuple[Cell, ...]
    sampled: tuple[Cell, ...]
    n_left: int
    confidence: float

    @property
    def top(self) -> list[tuple[Cell, float]]:
        """The cells computed exactly, largest |effect| first, each with its effect."""
        found = [(cell, float(self.exact[cell])) for cell in (*self.kept, *self.sampled)]
        return sorted(found, key=lambda each: -abs(each[1]))

    @property
    def largest_sampled(self) -> float:
        """The largest |effect| in the random sample; NaN without one."""
        return max((abs(float(self.exact[cell])) for cell in self.sampled), default=math.nan)

    @property
    def may_exceed(self) -> int:
        """How many unchecked cells may, at most and with this confidence, exceed `largest_sampled`."""
        return exceeding_at_most(self.n_left, len(self.sampled), self.confidence)

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of estimate and exact effect over the cells kept and sampled; NaN for fewer than two."""
        cells = [*self.kept, *self.sampled]
        effects = self.estimate.indirect_effect[self.kind]
        estimates, exact = ([values[cell] for cell in cells] for values in (effects, self.exact))
        if self.estimate.settings.engine == "graddrop":  # which has sizes only
            exact = np.abs(exact)
        return rank_correlation(np.array(estimates), np.array(exact))

    def __str__(self) -> str:
        (token, layer), effect = self.top[0]
        return (
            f"{self.kind}: {len(self.kept)} cells kept, {len(self.sampled)} of the other {self.n_left} checked at "
            f"random. Largest effect {effect:+.4f} at layer {layer}, token {token}. With {self.confidence:.0%} "
            f"confidence at most {self.may_exceed} unchecked cells exceed {self.largest_sampled:.4f} in size. "
            f"Rank correlation of estimates with exact effects {self.rank_correlation:.2f}."
        )

    __repr__ = __str__  # what a notebook shows


def screen(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    kind: Kind,
    *,
    keep: int = 20,
    check: int = 20,
    confidence: float = 0.95,
    window: int = 10,
    samples: int = 10,
    seed: int = 1,
    corruption: Corruption | str | None = None,
    method: Method = "atp",
    progress: bool | None = None,
) -> Screening:
    """Finds the sites with the largest effects without restoring them all.

    Costs one first-order map and `keep` + `check` restored passes of `samples` rows. Worth it where the
    map has many more cells than that; `tracer.trace` shares work between cells and is quicker for short
    prompts in small models.

    Args:
        model: from `tracer.load`.
        fact: as in `tracer.trace`.
        kind: "state", "mlp" or "attn".
        keep: cells computed exactly because of their estimates.
        check: cells of the rest computed exactly at random; they bound what was missed.
        confidence: of that bound, in (0, 1).
        window: layers restored together around each MLP or attention.
        samples: noise draws, those of `tracer.trace`.
        seed: of the draws, also of the random cells.
        corruption: what corrupts the subject, or its name; default `GaussianNoise(3)`.
        method: what ranks the cells, as in `attribute`.
        progress: show a bar; None: in a terminal or notebook.

    Raises:
        SiteError: keep, check or confidence that make no screening; otherwise as `attribute`.

    Source: Kramar et al. 2024, who verify the largest estimates and sample the rest.
    """
    if keep < 1 or check < 0:
        raise SiteError(f"keep={keep}, check={check} is no screening. Write keep=20, check=20.")
    if not 0 < confidence < 1:
        raise SiteError(f"confidence={confidence} is not between 0 and 1. Write confidence=0.95.")
    options = {"window": window, "samples": samples, "seed": seed, "corruption": corruption}
    estimate = attribute(model, fact, kinds=(kind,), method=method, **options)
    prepared = prepare(model, estimate.fact, Plan(kinds=(kind,), **options))
    begin, n_tokens = estimate.fact.subject_span[0], len(estimate.fact.token_ids)
    sizes = np.abs(estimate.indirect_effect[kind])
    cells = [(token, layer) for token in range(begin, n_tokens) for layer in range(model.n_layers)]
    cells.sort(key=lambda cell: -sizes[cell])
    kept, left = cells[:keep], cells[keep:]
    chosen = np.random.RandomState(seed).permutation(len(left))[:check]
    sampled = [left[number] for number in chosen]
    passes = Passes(model, prepared.ids, estimate.fact.subject_span, prepared.draws)
    exact = np.full(sizes.shape, np.nan)
    with bar(len(kept) + len(sampled), f"screening {kind}", show=progress, unit="site") as steps:
        for token, layer in (*kept, *sampled):
            held = passes.state(token, layer) if kind == "state" else passes.window(kind, token, layer, window)
            restored = probability(passes.restored(held), estimate.answer_id)
            exact[token, layer] = float(restored.double().mean()) - estimate.corrupted
            steps.update()
    return Screening(kind, estimate, exact, tuple(kept), tuple(sampled), len(left), confidence)


def exceeding_at_most(n_left: int, n_sampled: int, confidence: float) -> int:
    """How many of `n_left` may exceed the largest of a random sample of them, at most, with this confidence.

    The least M - 1 such that C(n_left - M, n_sampled) / C(n_left, n_sampled) <= 1 - confidence.
    """
    chance = 1.0
    for above in range(n_left - n_sampled + 1):  # chance that `above` such cells all escape the sample
        if chance <= 1 - confidence:
            return max(0, above - 1)
        chance *= (n_left - n_sampled - above) / (n_left - above) if n_left > above else 0.0
    return n_left - n_sampled


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays of the same size, ties sharing their mean rank.

    NaN for fewer than two values or where one of them does not vary.
    """
    ranks = [pd.Series(np.ravel(values)).rank().to_numpy() for values in (one, other)]
    if len(ranks[0]) < 2 or any(values.std() == 0 for values in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
