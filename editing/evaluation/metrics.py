"""From the scores of prompts to the metrics of a case, under the names that papers use.

Two families side by side. CounterFact's, where n = nll(target) and t = nll(other):
    ES, PS, NS = 1[n < t] on edited prompt, paraphrases and neighbours (whose target is the old answer)
    *_magnitude = e^-n - e^-t      ("EM" elsewhere means exact match)
The surveys' reliability, generalization and locality: `_token_acc`, `_tf_exact` (teacher-forced) and
`_gen_exact`, `_gen_contains` (free-running) differ by tens of points for answers of several tokens.
    locality_agreement     with the unedited model's predictions
    specificity_accuracy   against the benchmark's answer, right or wrong before
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from editing.evaluation.case import Case, Group
from editing.evaluation.matches import gen_contains, gen_exact
from editing.scoring.scores import Pair, TargetScore

ACCURACIES = ("token_acc", "tf_exact", "gen_exact", "gen_contains")
NAMES: Mapping[tuple[str, str], str] = {
    ("rewrite", "preferred"): "ES",
    ("paraphrase", "preferred"): "PS",
    ("neighborhood", "preferred"): "NS",
    ("rewrite", "margin"): "efficacy_magnitude",
    ("paraphrase", "margin"): "paraphrase_magnitude",
    ("neighborhood", "margin"): "neighborhood_magnitude",
    **{("rewrite", kind): f"reliability_{kind}" for kind in (*ACCURACIES, "nll", "nll_sum")},
    **{("paraphrase", kind): f"generalization_{kind}" for kind in (*ACCURACIES, "nll", "nll_sum")},
    ("neighborhood", "token_acc"): "specificity_accuracy",
    ("neighborhood", "tf_exact"): "specificity_exact",
    ("neighborhood", "agree"): "locality_agreement",
    ("neighborhood", "agree_exact"): "locality_agreement_exact",
    ("neighborhood", "kl"): "locality_kl",
}
WRITING = ("fluency", "consistency")
IN_NATS = ("nll", "nll_sum", "kl")  # ends of the names that are no shares


def metric_name(group: str, statistic: str) -> str:
    """What papers call a statistic of a group of prompts."""
    return NAMES.get((group, statistic), f"{group}_{statistic}")


def case_metrics(
    case: Case,
    scores: Mapping[Pair, TargetScore],
    *,
    base: Mapping[Pair, TargetScore] | None = None,
    divergences: Mapping[Pair, float] | None = None,
    texts: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """The metrics of one case, means over the prompts of each group; a group without prompts gives none.

    Args:
        case: what was asked.
        scores: of its pairs.
        base: scores before the edit; with them, groups that should stay are compared.
        divergences: KL from before, of pairs that should stay; NaN where unknown.
        texts: free-running answers by prompt.
    """
    found = {}
    for group in case.groups:
        if not group.asks:
            continue
        statistics = _scored(group, scores)
        if texts is not None and not group.stays:
            statistics |= _said(group, texts)
        if base is not None and group.stays:
            statistics |= _compared(group, scores, base, divergences or {})
        found |= {metric_name(group.name, statistic): _mean(values) for statistic, values in statistics.items()}
    return found


def failed(case: Case, before: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a case that could not be edited: no success, and everything else as it was."""
    metrics = dict(before)
    for group in case.groups:
        if not group.stays:
            names = {metric_name(group.name, kind) for kind in ("preferred", *ACCURACIES)}
            metrics |= {name: 0.0 for name in names & before.keys()}
        elif group.asks:
            still = {"agree": 1.0, "agree_exact": 1.0, "kl": 0.0}
            metrics |= {metric_name(group.name, kind): value for kind, value in still.items()}
    return metrics


def _scored(group: Group, scores: Mapping[Pair, TargetScore]) -> dict[str, list[float]]:
    wanted = [scores[ask.prompt, ask.target] for ask in group.asks]
    found = {kind: [float(getattr(score, kind)) for score in wanted] for kind in ("token_acc", "tf_exact", "nll")}
    found["nll_sum"] = [score.nll_sum for score in wanted]
    if all(ask.other is not None for ask in group.asks):
        rivals = [scores[ask.prompt, ask.other or ""] for ask in group.asks]
        pairs = list(zip(wanted, rivals, strict=True))
        found["preferred"] = [float(good.nll < bad.nll) for good, bad in pairs]  # a tie is a failure
        found["margin"] = [good.prob - bad.prob for good, bad in pairs]
    return found


def _said(group: Group, texts: Mapping[str, str]) -> dict[str, list[float]]:
    answers = [(texts[ask.prompt], ask.target) for ask in group.asks]
    return {
        "gen_exact": [float(gen_exact(text, target)) for text, target in answers],
        "gen_contains": [float(gen_contains(text, target)) for text, target in answers],
    }


def _compared(
    group: Group,
    scores: Mapping[Pair, TargetScore],
    base: Mapping[Pair, TargetScore],
    divergences: Mapping[Pair, float],
) -> dict[str, list[float]]:
    pairs = [(ask.prompt, ask.target) for ask in group.asks]
    agree = [scores[pair].agree(base[pair]) for pair in pairs]
    found = {"agree": agree, "agree_exact": [float(share == 1) for share in agree]}
    known = [divergences[pair] for pair in pairs if not np.isnan(divergences.get(pair, np.nan))]
    return {**found, "kl": known} if known else found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
