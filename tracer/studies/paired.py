"""Do two maps differ? Paired tests over facts, by role and layer.

Both maps are traced on the same facts with the same noise, so their difference d is taken fact by
fact. Sign flips: were the maps exchangeable, +d and -d would be equally likely for each fact; p is
the share of sign patterns whose mean is at least as far from 0. Bootstrap: p is twice the smaller
share of resampled means on either side of 0. Layers are many tests at once: Holm's correction (1979)
keeps the chance of any false alarm over the layers of one role below the level chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd

from tracer.effect import AverageTrace
from tracer.effect.resample import resampled_means
from tracer.errors import SiteError, StudyError
from tracer.fact import ROLES, check_roles
from tracer.studies.table import bootstrap

RESAMPLES = 10_000
Method = Literal["sign-flip", "bootstrap"]


@dataclass(frozen=True, eq=False)
class PairedTest:
    """The difference between two maps at one role; all arrays are [layer].

    Attributes:
        difference: mean over facts of `first` - `second`, a difference of effects, in the metric's unit.
        low, high: its 95 % percentile interval over resampled facts, not corrected for the number of layers.
        p: two-sided, of one layer alone.
        p_holm: the same, corrected over the layers.
        n: facts.
        resamples: sign patterns or resamples; all 2^n patterns where those are fewer than asked for.
    """

    first: str
    second: str
    role: str
    method: Method
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_holm: np.ndarray
    n: int
    resamples: int

    def to_frame(self) -> pd.DataFrame:
        """One row a layer."""
        about = {"first": self.first, "second": self.second, "role": self.role}
        arrays = {name: getattr(self, name) for name in ("difference", "low", "high", "p", "p_holm")}
        values = {"layer": np.arange(len(self.p)), **arrays, "n": self.n}
        return pd.DataFrame({**about, **values, "method": self.method, "resamples": self.resamples})

    def __str__(self) -> str:
        at = np.flatnonzero(self.p_holm < 0.05)
        where = f"differ at layers {', '.join(map(str, at))}" if len(at) else "do not differ at any layer"
        most = int(np.abs(self.difference).argmax())
        return (
            f"{self.first} and {self.second}, {self.role}: {where} (p < 0.05, {self.method}, Holm over "
            f"{len(self.p)} layers, n={self.n}); largest difference {self.difference[most]:+.3f} "
            f"[{self.low[most]:+.3f}, {self.high[most]:+.3f}] at layer {most}"
        )

    __repr__ = __str__  # what a notebook shows


def paired_test(
    average: AverageTrace,
    first: str,
    second: str,
    *,
    role: str = "last subject token",
    method: Method = "sign-flip",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedTest:
    """Tests whether two maps of an average differ at a role, layer by layer.

    Args:
        average: from `Study.average` or `tracer.average`.
        first: a map, e.g. "state" or "mlp".
        second: another, e.g. "state | mlp severed" or "attn".
        role: of the token.
        method: "sign-flip" or "bootstrap".
        resamples: sign patterns (all of them where there are no more than this) or resamples; p is never
            below 1 / (resamples + 1) where they are drawn.
        seed: of the draws.

    Raises:
        SiteError: the average has no such map.
        StudyError: fewer than two facts have this role, there is no such method, or the average is of an
            encoder-decoder.
    """
    check_roles([role])
    if average.settings.encoder_layers:
        raise StudyError(
            "Paired tests run over all layers, and in an encoder-decoder a token has sites in those of its own stack "
            "alone. Test columns of average.effects yourself, or compare means: average.to_frame()."
        )
    for kind in (first, second):
        if kind not in average.effects:
            raise SiteError(f"This average has no {kind!r}; it has {', '.join(average.effects)}.")
    if method not in ("sign-flip", "bootstrap"):
        raise StudyError(f'There is no test {method!r}. Write method="sign-flip" or method="bootstrap".')
    row = ROLES.index(role)
    difference = average.effects[first][:, row] - average.effects[second][:, row]
    difference = difference[~np.isnan(difference).any(1)]
    if len(difference) < 2:
        raise StudyError(f"{len(difference)} fact has a {role} in both maps; a test needs two or more.")
    low, high = bootstrap(difference, seed=seed)
    if method == "sign-flip":
        p, resamples = _sign_flip(difference, resamples, seed)
    else:
        p = _bootstrap_p(difference, resamples, seed)
    found = {"difference": difference.mean(0), "low": low, "high": high, "p": p, "p_holm": holm(p)}
    return PairedTest(first, second, role, method, **found, n=len(difference), resamples=resamples)


def paired_tests(
    average: AverageTrace, first: str, second: str, *, method: Method = "sign-flip", seed: int = 0
) -> pd.DataFrame:
    """`paired_test` at every role that two or more facts have, one below the other; Holm within each role."""
    tests = []
    for role in ROLES:
        values = average.effects.get(first, np.empty((0, len(ROLES), 1)))[:, ROLES.index(role)]
        if first not in average.effects or (~np.isnan(values).any(1)).sum() > 1:
            tests.append(paired_test(average, first, second, role=role, method=method, seed=seed).to_frame())
    if not tests:
        raise StudyError("No role is there in two facts or more; a test needs two.")
    return pd.concat(tests, ignore_index=True)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's correction of p values [test] for their number: sorted, the k-th smallest of m times m - k + 1."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def _sign_flip(difference: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, int]:
    """Two-sided p [layer] and the number of sign patterns it rests on."""
    n = len(difference)
    every = n < 31 and 2**n <= resamples
    if every:
        signs = np.array(list(product((1.0, -1.0), repeat=n)))
    else:
        signs = np.random.RandomState(seed).choice((1.0, -1.0), size=(resamples, n))
    observed = np.abs(difference.mean(0))
    # As far as the observed one up to rounding: it is one of the patterns itself.
    as_far = (np.abs(signs @ difference / n) >= observed - 1e-12 * (1 + observed)).sum(0)
    return (as_far / len(signs) if every else (as_far + 1) / (len(signs) + 1)), len(signs)


def _bootstrap_p(difference: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    means = resampled_means(difference, resamples=resamples, seed=seed)
    sides = np.minimum((means <= 0).sum(0), (means >= 0).sum(0))
    return np.minimum(1.0, 2 * (sides + 1) / (resamples + 1))
