"""What each editor is good at: its properties with intervals over resampled cases."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from editing.comparison.folder import Comparison
from editing.comparison.properties import PROPERTIES, Component, component_means, components
from tracer.effect.resample import percentile_interval

RESAMPLES = 2000


def profile(comparison: Comparison, *, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """A row for each measured property and each editor that has all its components to the end, per cent.

    Columns: property, editor, value, low, high; the interval is the 95 % percentile interval.
    """
    measured = measured_properties(comparison)
    values, _ = property_draws(measured, comparison.editors, resamples=resamples, seed=seed)
    rows = []
    for name in measured:
        for editor in comparison.editors:
            found = values[editor][name]
            if not np.isnan(found[0]):
                low, high = percentile_interval(found[1:][~np.isnan(found[1:])])
                rows.append((name, editor, 100 * found[0], 100 * float(low), 100 * float(high)))
    return pd.DataFrame(rows, columns=pd.Index(["property", "editor", "value", "low", "high"]))


def measured_properties(comparison: Comparison, names: Iterable[str] = PROPERTIES) -> dict[str, list[Component]]:
    """The components of those properties that were measured of any editor."""
    found = {name: components(comparison, PROPERTIES[name]) for name in names}
    return {name: parts for name, parts in found.items() if parts}


def property_draws(
    measured: Mapping[str, Sequence[Component]], editors: Sequence[str], *, resamples: int, seed: int
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, int]]:
    """By editor and property its value and those of the resamples, [1 + resample]; by data file the cases.

    NaN where an editor lacks a component of a property, or has fewer cases of it than others. A resample draws the
    same cases for all editors.
    """
    draws = {
        data: _draws(ids, resamples, [seed, zlib.crc32(data.encode())])  # files are drawn from independently
        for data, ids in _shared_cases(measured, editors).items()
    }
    values = {
        editor: {
            name: np.mean([_means(part, name, editor, draws) for part in found], axis=0)
            for name, found in measured.items()
        }
        for editor in editors
    }
    return values, {data: len(ids) for data, (ids, _) in draws.items() if data}


def _shared_cases(measured: Mapping[str, Sequence[Component]], editors: Sequence[str]) -> dict[str, list[str]]:
    """By data file the cases of its components."""
    found: dict[str, dict[str, None]] = {"": {}}
    for part in (part for parts in measured.values() for part in parts):
        for editor in editors:
            found.setdefault(part.where[0], {}).update(dict.fromkeys(part.values.get(editor, {})))
    return {data: list(ids) for data, ids in found.items()}


def _draws(ids: list[str], resamples: int, seed: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """The cases, and how often each is drawn, [1 + resample, case]; first of all each is drawn once."""
    picks = np.random.RandomState(seed).randint(max(1, len(ids)), size=(resamples, len(ids)))
    counts = np.stack([np.bincount(row, minlength=len(ids)) for row in picks]).astype(float)
    return ids, np.vstack([np.ones((1, len(ids))), counts])


def _means(part: Component, name: str, editor: str, draws: Mapping[str, tuple[list[str], np.ndarray]]) -> np.ndarray:
    ids, counts = draws[part.where[0]]
    if editor not in part.editors:
        return np.full(len(counts), np.nan)
    return component_means(part, PROPERTIES[name], editor, ids, counts)
