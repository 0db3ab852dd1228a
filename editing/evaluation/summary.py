"""From cases to a table: means over cases, with intervals and n; differences of editors, case by case.

A mean is over the prompts of a case first, then over cases. Its 95 % half-width is 1.96 s / sqrt(n), s the
cases' standard deviation (n - 1). S is the harmonic mean of the aggregated ES, PS and NS; `accuracy_S` that
of efficacy, paraphrase and specificity accuracy (zsRE). Their half-width is 1.96 times the standard deviation
over resampled cases, the same cases for all three parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from editing.datasets.case import CaseScores
from editing.errors import EvaluationError
from editing.evaluation.checkpoints import Checkpoint
from editing.metrics.of_cases import GENERAL_TEXT, UNSCALED
from tracer.effect import Estimate
from tracer.effect.resample import percentile_interval, resampled_means

COMPOUND: Mapping[str, tuple[str, ...]] = {
    "S": ("ES", "PS", "NS"),
    "accuracy_S": ("reliability_token_acc", "generalization_token_acc", "specificity_accuracy"),
}
ORDER = ("ES", "PS", "NS", "S")  # what a table begins with
RESAMPLES = 10_000
SPREAD_RESAMPLES = 1000  # are enough for a standard deviation


def summary(cases: Sequence[CaseScores], *, editable_only: bool = False) -> pd.DataFrame:
    """A row for each time and score: when, score, mean, half_width, n; per cent, but for nll and KL (nats).

    Args:
        cases: scored.
        editable_only: leave out those that could not be edited, which otherwise count as failures.
    """
    chosen = [case for case in cases if case.editable or not editable_only]
    rows = []
    for when in ("before", "after"):
        metrics = [getattr(case, when) for case in chosen]
        estimates = _estimates(metrics)
        for name, value in estimates.items():
            rows.append((when, name, scale(name) * value.mean, scale(name) * 1.96 * value.standard_error, value.n))
        for name, parts in COMPOUND.items():
            if all(part in estimates for part in parts):
                mean = harmonic_mean([estimates[part].mean for part in parts])
                half_width = 100 * 1.96 * _resampled_deviation(metrics, parts)
                rows.append((when, name, 100 * mean, half_width, min(estimates[part].n for part in parts)))
    rows.sort(key=lambda row: (row[0] == "after", ORDER.index(row[1]) if row[1] in ORDER else len(ORDER)))
    return pd.DataFrame(rows, columns=pd.Index(["when", "score", "mean", "half_width", "n"]))


def batch_summary(batches: Mapping[int, Sequence[CaseScores]], *, editable_only: bool = False) -> pd.DataFrame:
    """`summary` of every batch size, in a column `size` in front.

    What is read of the model and not of a case is one number a batch, so its n is 1.
    """
    rows = [
        {"size": size, **row, **(_once(row["mean"]) if row["score"] in GENERAL_TEXT else {})}
        for size, cases in sorted(batches.items())
        for row in summary(cases, editable_only=editable_only).to_dict("records")
    ]
    return pd.DataFrame(rows)


def sequential_summary(checkpoints: Sequence[Checkpoint], *, editable_only: bool = False) -> pd.DataFrame:
    """A row for each checkpoint, time and score: edits, when, score, mean, half_width, n, last.

    `before` is the unedited model, asked the same. `mean` is the retention, `last` the mean over the last step; metrics
    of the fixed set, perplexity_ratio, text_kl and the largest relative_change (but that of a weight that was zero)
    stand beside them.

    Args:
        checkpoints: of one sequence.
        editable_only: leave out edits that could not be written, which otherwise count as failures.
    """
    rows = []
    for point in checkpoints:
        for cases in (point.scores, point.fixed):
            for row in summary(cases, editable_only=editable_only).to_dict("records"):
                retained = cases is point.scores and row["when"] == "after"
                last = scale(row["score"]) * point.last(row["score"]) if retained else np.nan
                rows.append({"edits": point.edits, **row, "last": last})
        model = {
            "perplexity_ratio": point.text.ratio,
            "text_kl": point.text.kl,
            "relative_change": max(filter(math.isfinite, point.relative_change.values()), default=0.0),
        }
        about = {"edits": point.edits, "when": "after"}
        rows += [{**about, "score": name, "mean": value, **_once(value)} for name, value in model.items()]
    return pd.DataFrame(rows, columns=pd.Index(["edits", "when", "score", "mean", "half_width", "n", "last"]))


def _once(value: float) -> dict[str, float]:
    """How well one number is known that is read of the model and of no case; a lost model has none."""
    return {"half_width": np.nan, "n": int(not math.isnan(value))}


@dataclass(frozen=True)
class Difference:
    """How much higher the first editor scores than the second on the cases both were scored on.

    Attributes:
        mean: first less second, in the unit of the score's table.
        low, high: 95 % percentile interval over resampled cases.
        n: cases.
    """

    mean: float
    low: float
    high: float
    n: int


def paired_difference(
    first: Iterable[CaseScores],
    second: Iterable[CaseScores],
    score: str,
    *,
    groups: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """The difference of two editors in a score, with a bootstrap over the cases that both have.

    Args:
        first: of one editor.
        second: of the other.
        score: of `after`, or a compound one.
        groups: by case, which of them stand or fall together, such as wordings of one fact; whole groups are drawn.
        resamples: how many.
        seed: of them.

    Raises:
        EvaluationError: fewer than two such cases.
    """
    parts = COMPOUND.get(score, (score,))
    sides = [{case.case_id: case.after for case in cases} for cases in (first, second)]
    shared = [key for key in sides[0] if all(_has(side.get(key, {}), parts) for side in sides)]
    if len(shared) < 2:
        raise EvaluationError(f"{len(shared)} cases have {score} of both editors. Score both on the same cases.")
    values = np.array([[side[key][part] for side in sides for part in parts] for key in shared], dtype=float)
    means = np.vstack([values.mean(0), _drawn_means(values, shared, groups, resamples=resamples, seed=seed)])
    one, other = (
        np.array([harmonic_mean(row) for row in side.tolist()]) if len(parts) > 1 else side[:, 0]
        for side in np.split(means, 2, axis=1)
    )
    differences = scale(score) * (one - other)
    low, high = percentile_interval(differences[1:])
    return Difference(float(differences[0]), float(low), float(high), len(shared))


def _drawn_means(
    values: np.ndarray, cases: Sequence[str], groups: Mapping[str, str] | None, *, resamples: int, seed: int
) -> np.ndarray:
    """Means of resampled cases, or of the cases of resampled groups, [resample, column]."""
    if groups is None:
        return resampled_means(values, resamples=resamples, seed=seed)
    _, at = np.unique([groups[case] for case in cases], return_inverse=True)
    sums = np.zeros((at.max() + 1, values.shape[1] + 1))
    np.add.at(sums, at, np.column_stack([values, np.ones(len(values))]))
    drawn = resampled_means(sums, resamples=resamples, seed=seed)
    return drawn[:, :-1] / drawn[:, -1:]


def _has(metrics: Mapping[str, float], parts: Sequence[str]) -> bool:
    """Whether a case has numbers for all of them: a lost model's nll is NaN."""
    return not any(math.isnan(metrics.get(part, math.nan)) for part in parts)


def edit_seconds(cases: Sequence[CaseScores], *, discard: int = 2) -> tuple[float, float, float, int]:
    """Median seconds an edit with both quartiles and n, the first `discard` left out: they warm up.

    Edits computed at once share their time, so all of the first ones' group are left out where others follow.
    """
    timed = [case for case in cases if case.editable and not np.isnan(case.seconds)]
    group = max(discard, timed[0].together) if timed else discard
    known = np.array([case.seconds for case in timed[group if len(timed) > group else discard :]])
    if not len(known):
        return float("nan"), float("nan"), float("nan"), 0
    low, median, high = np.percentile(known, [25, 50, 75])
    return float(median), float(low), float(high), len(known)


def harmonic_mean(values: Sequence[float]) -> float:
    """The harmonic mean, n / sum(1 / v); 0 if any value is 0."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def scale(score: str) -> float:
    """Shares and word entropies are shown times 100, nats and ratios as they are."""
    return 1.0 if score.endswith(UNSCALED) else 100.0


def _resampled_deviation(metrics: Sequence[Mapping[str, float]], parts: Sequence[str]) -> float:
    """Standard deviation of the harmonic mean of the parts' means over resampled cases; NaN for fewer than two.

    A case without a part counts for the others alone, and a resample without any case of a part not at all.
    """
    values = np.array([[record.get(part, np.nan) for part in parts] for record in metrics])
    if len(values) < 2:
        return math.nan
    known = ~np.isnan(values)
    drawn = resampled_means(np.hstack([np.where(known, values, 0.0), known]), resamples=SPREAD_RESAMPLES, seed=0)
    sums, shares = np.split(drawn, 2, axis=1)
    whole = (shares > 0).all(1)
    found = [harmonic_mean(row) for row in (sums[whole] / shares[whole]).tolist()]
    return float(np.std(found)) if len(found) > 1 else math.nan


def _estimates(metrics: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    names = dict.fromkeys(name for record in metrics for name in record)
    return {name: Estimate.of(np.array([record.get(name, np.nan) for record in metrics])) for name in names}
