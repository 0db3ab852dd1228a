"""From the scores of prompts to the metrics of a case, under the names that papers use.

Two families side by side. CounterFact's, where n = nll(target) and t = nll(other):
    ES, PS, NS = 1[n < t] on edited prompt, paraphrases and neighbours (whose target is the old answer)
    *_magnitude = e^-n - e^-t      ("EM" elsewhere means exact match)
The surveys' reliability, generalization and locality: `_token_acc`, `_tf_exact` (teacher-forced) and
`_gen_exact`, `_gen_contains` (free-running) differ by tens of points for answers of several tokens.
    locality_agreement     with the unedited model's predictions
    specificity_accuracy   against the benchmark's answer, right or wrong before
    specificity_kept       against the benchmark's answer, where the model was right before
Groups of other kinds give names of the form GROUP_STATISTIC; `definitions.py` explains every name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from editing.datasets.case import Case, Group
from editing.metrics.matches import gen_contains, gen_exact
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
    ("neighborhood", "kept"): "specificity_kept",
    ("distracting_neighborhood", "preferred"): "distracting_NS",
    ("other_task", "preferred"): "other_task_accuracy",
    ("other_task", "preferred_sum"): "other_task_accuracy_sum",
}
WORDS = {"agree": "agreement", "agree_exact": "agreement_exact"}
GENERAL_TEXT = ("perplexity_ratio", "text_kl")
MOST_RATIO = 1e12  # of perplexities; JSON has no infinity, and a lost model must not look like one not asked
UNSCALED = ("nll", "nll_sum", "kl", "ratio", "relative_change")  # ends of the names that are no shares


def metric_name(group: str, statistic: str) -> str:
    """What papers call a statistic of a group of prompts."""
    return NAMES.get((group, statistic), f"{group}_{WORDS.get(statistic, statistic)}")


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
        if group.compared:
            statistics |= _kept(group, scores, base or scores)
        if base is not None and group.compared:
            statistics |= _compared(group, scores, base, divergences or {})
        found |= {metric_name(group.name, statistic): _mean(values) for statistic, values in statistics.items()}
    return found


def failed(case: Case, before: Mapping[str, float], *, kl: bool = True) -> dict[str, float]:
    """The metrics of a case that could not be edited: no success, and everything else as it was; `kl`: it is asked."""
    metrics = dict(before)
    for group in case.groups:
        if not group.stays:
            names = {metric_name(group.name, kind) for kind in ("preferred", *ACCURACIES)}
            metrics |= {name: 0.0 for name in names & before.keys()}
        elif group.asks and group.compared:
            still = {"agree": 1.0, "agree_exact": 1.0, **({"kl": 0.0} if kl else {})}
            metrics |= {metric_name(group.name, kind): value for kind, value in still.items()}
    return metrics


def lost(case: Case, before: Mapping[str, float], *, kl: bool = True) -> dict[str, float]:
    """The metrics of a case after whose edit the model gives NaN: nothing is right and nothing as it was.

    Perplexity has grown by `MOST_RATIO`; nll and KL, which have no largest value, are NaN.
    """
    metrics = {name: math.nan if name.endswith(UNSCALED) else 0.0 for name in before}
    metrics |= {"perplexity_ratio": MOST_RATIO} if "perplexity_ratio" in before else {}
    for group in case.groups:
        if group.stays and group.asks and group.compared:
            gone = {"agree": 0.0, "agree_exact": 0.0, **({"kl": math.nan} if kl else {})}
            metrics |= {metric_name(group.name, kind): value for kind, value in gone.items()}
    return metrics


def _scored(group: Group, scores: Mapping[Pair, TargetScore]) -> dict[str, list[float]]:
    found = _rivals(group, scores) if all(ask.other is not None for ask in group.asks) else {}
    if group.choice:
        return {kind: found[kind] for kind in ("preferred", "preferred_sum")}
    found.pop("preferred_sum", None)
    wanted = [scores[ask.prompt, ask.target] for ask in group.asks]
    found |= {kind: [float(getattr(score, kind)) for score in wanted] for kind in ("token_acc", "nll", "nll_sum")}
    found["tf_exact"] = [
        float(any(scores[ask.prompt, answer].tf_exact for answer in (ask.target, *ask.aliases))) for ask in group.asks
    ]
    return found


def _rivals(group: Group, scores: Mapping[Pair, TargetScore]) -> dict[str, list[float]]:
    """Which of two answers is more probable, and by how much; a tie is a failure."""
    pairs = [(scores[ask.prompt, ask.target], scores[ask.prompt, ask.other or ""]) for ask in group.asks]
    return {
        "preferred": [float(good.nll < bad.nll) for good, bad in pairs],
        "preferred_sum": [float(good.nll_sum < bad.nll_sum) for good, bad in pairs],
        "margin": [good.prob - bad.prob for good, bad in pairs],
    }


def _said(group: Group, texts: Mapping[str, str]) -> dict[str, list[float]]:
    answers = [(texts[ask.prompt], (ask.target, *ask.aliases)) for ask in group.asks]
    return {
        "gen_exact": [float(any(gen_exact(text, right) for right in rights)) for text, rights in answers],
        "gen_contains": [float(any(gen_contains(text, right) for right in rights)) for text, rights in answers],
    }


def _kept(group: Group, scores: Mapping[Pair, TargetScore], base: Mapping[Pair, TargetScore]) -> dict[str, list[float]]:
    """Token accuracy where the model was right before; none where it was right nowhere."""
    pairs = [(ask.prompt, ask.target) for ask in group.asks]
    known = [scores[pair].token_acc for pair in pairs if base[pair].tf_exact]
    return {"kept": known} if known else {}


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
