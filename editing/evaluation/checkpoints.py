"""What a sequence of edits has left at some points of it: of the edits, and of the model.

With r(k, j) the score of edit j once k edits were made, at checkpoints k:
    last-edit success  r(k, k)                     what each edit achieves when it is made
    retention          (1/k) sum_{j <= k} r(k, j)  what is left of all of them
Scoring each edit right after it is made, and averaging, gives the mean of r(j, j): that is no retention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from editing.datasets.case import CaseScores
from editing.metrics.alarms import GeneralText


@dataclass(frozen=True)
class Checkpoint:
    """The model after some edits.

    Attributes:
        edits: how many cases have been edited.
        step: how many of them were written last, together.
        scores: r(k, j) of each metric, of every case so far.
        fixed: the metrics of the fixed set, by case.
        text: perplexity and KL on ordinary text.
        relative_change: ||W_k - W_0|| / ||W_0|| of each changed weight.
        stopped: the alarm rang and the edits since the last good checkpoint were undone.
    """

    edits: int
    step: int
    scores: tuple[CaseScores, ...]
    fixed: tuple[CaseScores, ...]
    text: GeneralText
    relative_change: Mapping[str, float]
    stopped: bool = False

    def retention(self, metric: str) -> float:
        """The mean of a metric over all edits so far."""
        return _mean([case.after.get(metric, math.nan) for case in self.scores])

    def last(self, metric: str) -> float:
        """The mean of a metric over the edits of the last step."""
        return _mean([case.after.get(metric, math.nan) for case in self.scores[-self.step :]])


def retention_matrix(checkpoints: Sequence[Checkpoint], metric: str) -> pd.DataFrame:
    """r(k, j): a row for each checkpoint k, a column for each case j; NaN where j came after k."""
    rows = {point.edits: {case.case_id: case.after.get(metric) for case in point.scores} for point in checkpoints}
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
