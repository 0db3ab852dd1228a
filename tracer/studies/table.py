"""Averages as a long table, with both intervals over facts side by side."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tracer.effect import AverageTrace
from tracer.effect.estimate import own_layers
from tracer.effect.resample import RESAMPLES, percentile_interval, resampled_means
from tracer.fact import ROLES


def average_frame(average: AverageTrace, *, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """One row a map, role and layer that any fact has.

    Columns: kind, role, layer, relative_depth (0 the first layer, 1 the last), effect (AIE), standard_error,
    low and high (effect ± 1.96 standard errors), bootstrap_low and bootstrap_high (95 % percentile interval
    over resampled facts), resamples, n (facts). Intervals of fewer than two facts are NaN.
    """
    records = []
    for kind, values in average.effects.items():
        for row, role in enumerate(ROLES):
            layers = own_layers(values[:, row])
            known = values[:, row, layers]
            known = known[~np.isnan(known).any(1)]
            if not len(layers):
                continue
            low, high = bootstrap(known, resamples=resamples, seed=seed)
            error = average.standard_error[kind][row]
            for at, (layer, effect) in enumerate(zip(layers.tolist(), known.mean(0), strict=True)):
                records.append(
                    {
                        "kind": kind,
                        "role": role,
                        "layer": layer,
                        "relative_depth": relative_depth(layer, values.shape[2]),
                        "effect": effect,
                        "standard_error": error[layer],
                        "low": effect - 1.96 * error[layer],
                        "high": effect + 1.96 * error[layer],
                        "bootstrap_low": low[at],
                        "bootstrap_high": high[at],
                        "resamples": resamples,
                        "n": len(known),
                    }
                )
    return pd.DataFrame.from_records(records)


def bootstrap(values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of the mean of values [fact, ...] over facts; NaN for fewer than two."""
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    return percentile_interval(resampled_means(values, resamples=resamples, seed=seed))


def relative_depth(layer: int, n_layers: int) -> float:
    """0 for the first layer, 1 for the last; so that models of different depth compare."""
    return layer / max(1, n_layers - 1)
