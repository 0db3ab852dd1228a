"""Which editor for this application? Ranks editors by the user's weights of properties, with intervals.

    score = sum_p weight_p * property_p / sum_p weight_p        over the properties that were measured

Cases are resampled with replacement, the same ones for all editors; `first` is the share of the resamples in
which an editor has the highest score, ties shared. An editor of which a weighted property was not measured as of
the others, or on fewer cases, is not ranked, for its score would be another thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from editing.comparison.folder import Comparison
from editing.comparison.profile import measured_properties, property_draws
from editing.comparison.properties import PROPERTIES, Component, check_weights
from editing.errors import EvaluationError
from tracer.effect.resample import percentile_interval

RESAMPLES = 10_000


@dataclass(frozen=True)
class Ranked:
    """One editor.

    Attributes:
        score: weighted mean of the properties, in [0, 1].
        low, high: 95 % percentile interval over resampled cases; NaN where there are not two to resample.
        first: share of the resamples in which it is first; NaN likewise.
        properties: by name, in [0, 1].
    """

    editor: str
    score: float
    low: float
    high: float
    first: float
    properties: Mapping[str, float]


@dataclass(frozen=True)
class Recommendation:
    """Editors by their score, the best first.

    Attributes:
        weights: of the properties that were measured.
        not_measured: weighted properties that no editor was measured on.
        not_ranked: editors that lack something, with what.
        unedited: of the weighted properties, in [0, 1], what the model has before an edit, where that is asked.
        cases: how many were resampled, by data file.
    """

    ranked: tuple[Ranked, ...]
    weights: Mapping[str, float]
    not_measured: tuple[str, ...]
    not_ranked: Mapping[str, str]
    unedited: Mapping[str, float]
    cases: Mapping[str, int]

    def to_frame(self) -> pd.DataFrame:
        """A row for each editor, per cent: score, low, high, first and each property."""
        names = ("score", "low", "high", "first")
        rows = [
            {"editor": one.editor, **{name: 100 * getattr(one, name) for name in names}}
            | {name: 100 * value for name, value in one.properties.items()}
            for one in self.ranked
        ]
        return pd.DataFrame(rows)


def recommend(
    comparison: Comparison, weights: Mapping[str, float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Recommendation:
    """Ranks the editors of a comparison.

    Args:
        comparison: from `read_comparison`.
        weights: of properties (see `editing.comparison.properties`); 0 leaves one out.
        resamples: of the cases.
        seed: of the resamples.

    Raises:
        EvaluationError: an unknown property, a negative weight, or nothing was measured of any editor.
    """
    check_weights(weights)
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    measured = measured_properties(comparison, weights)
    lacking = {editor: _lacking(editor, measured) for editor in comparison.editors}
    editors = [editor for editor, missing in lacking.items() if not missing]
    if not measured or not editors:
        there = ", ".join(measured_properties(comparison)) or "nothing"
        what = f"measured {', '.join(measured)}, and no editor has all of that" if measured else "measured nothing"
        raise EvaluationError(
            f"Of {', '.join(weights)} {comparison.folder} {what}. What it did measure: {there}. Weigh that, or run "
            f"`editing compare` with the data that lacks."
        )
    values, cases = property_draws(measured, editors, resamples=resamples, seed=seed)
    total = sum(weights[name] for name in measured)
    scores = np.array([sum(weights[name] * values[editor][name] for name in measured) / total for editor in editors])
    return Recommendation(
        ranked=tuple(_ranked(editors, scores, values, resampled=max(cases.values(), default=0) > 1)),
        weights={name: weights[name] for name in measured},
        not_measured=tuple(name for name in weights if name not in measured),
        not_ranked={editor: missing for editor, missing in lacking.items() if missing},
        unedited=_unedited(measured),
        cases=cases,
    )


def _unedited(measured: Mapping[str, Sequence[Component]]) -> dict[str, float]:
    shares = {
        name: float(np.mean([part.before for part in parts]))
        for name, parts in measured.items()
        if PROPERTIES[name].kind == "share"
    }
    return {name: share for name, share in shares.items() if not math.isnan(share)}


def _lacking(editor: str, measured: Mapping[str, Sequence[Component]]) -> str:
    """What was measured of others and not, or not to the end, of this editor, in words; "" for nothing."""
    missing = [
        f"{name} ({', '.join(word for word in (*part.where[:2], _edits(part), part.unfinished(editor)) if word)})"
        for name, found in measured.items()
        for part in found
        if editor not in part.editors
    ]
    return ", ".join(dict.fromkeys(missing))


def _edits(part: Component) -> str:
    return f"{part.where[2]} edits" if part.where[2] > 1 else ""


def _ranked(
    editors: Sequence[str], scores: np.ndarray, values: Mapping[str, Mapping[str, np.ndarray]], *, resampled: bool
) -> list[Ranked]:
    """Scores are [editor, 1 + resample]; a resample in which a metric has no case counts for no interval."""
    drawn = scores[:, 1:][:, ~np.isnan(scores[:, 1:]).any(0)]
    best = np.isclose(drawn, drawn.max(0), rtol=0, atol=1e-12)
    first = (best / best.sum(0)).mean(1)
    found = []
    for at, editor in enumerate(editors):
        low, high = percentile_interval(drawn[at])
        spread = (float(low), float(high), float(first[at])) if resampled else (math.nan, math.nan, math.nan)
        properties = {name: float(means[0]) for name, means in values[editor].items()}
        found.append(Ranked(editor, float(scores[at, 0]), *spread, properties))
    return sorted(found, key=lambda one: -one.score)
