"""Effects, their means over facts or samples and their errors; NaN where nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` facts (or samples) with its standard error."""

    mean: float
    standard_error: float
    n: int

    @classmethod
    def of(cls, values: np.ndarray) -> Estimate:
        """The mean of the values that are not NaN; its error is NaN for fewer than two."""
        values = np.asarray(values, dtype=np.float64)
        values = values[~np.isnan(values)]
        if not len(values):
            return cls(float("nan"), float("nan"), 0)
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        return cls(float(values.mean()), float(error), len(values))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, mean ± 1.96 standard errors."""
        return self.mean - 1.96 * self.standard_error, self.mean + 1.96 * self.standard_error

    def __str__(self) -> str:
        spread = f" ± {1.96 * self.standard_error:.3f}" if self.n > 1 else ""
        return f"{self.mean:.3f}{spread} (n={self.n})"

    __repr__ = __str__  # what a notebook shows


def own_layers(values: Float[np.ndarray, "fact layer"]) -> Int[np.ndarray, " own"]:
    """The layers in which any of the values is there: a token has sites in its own stack's alone."""
    return np.flatnonzero(~np.isnan(values).all(0))


def over_facts(values: Float[np.ndarray, " fact *rest"], statistic: Any) -> Float[np.ndarray, "*rest"]:
    """`statistic` over the first axis where any of it has a value, NaN elsewhere (without numpy's warnings)."""
    result = np.full(values.shape[1:], np.nan)
    known = ~np.isnan(values).all(0)
    result[known] = statistic(values[:, known], axis=0)
    return result


def nan_error(values: Float[np.ndarray, "*axes"], axis: int) -> np.ndarray:
    """Standard error of the mean of the values that are not NaN; NaN for fewer than two."""
    n = (~np.isnan(values)).sum(axis)
    spread = np.sqrt(np.nansum((values - np.nanmean(values, axis=axis)) ** 2, axis=axis) / np.maximum(n - 1, 1))
    return np.where(n > 1, spread / np.sqrt(n), np.nan)


def sample_effects(
    values: Float[np.ndarray, "*site sample"], clean: float, corrupted: Float[np.ndarray, " sample"], direction: str
) -> Float[np.ndarray, "*site sample"]:
    """The effect in each noise sample.

    Args:
        values: the metric with a site set.
        clean: the metric, nothing corrupted.
        corrupted: the metric in each corrupted run.
        direction: "restore": what the site gains over its corrupted run; "corrupt": what it takes from the clean one.
    """
    return clean - values if direction == "corrupt" else values - corrupted


def sample_error(effects: Float[np.ndarray, "*site sample"]) -> Float[np.ndarray, "*site"]:
    """Standard error of the mean over samples; NaN for fewer than two."""
    n = effects.shape[-1]
    return effects.std(-1, ddof=1) / np.sqrt(n) if n > 1 else np.full(effects.shape[:-1], np.nan)
