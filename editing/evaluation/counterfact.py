"""CounterFact's efficacy, paraphrase and neighbourhood scores (Meng et al. 2022, sec. 3.3).

With n = nll(new), t = nll(true) of one prompt:
    ES, PS = 1[t > n]   on the edited prompt and its paraphrases
    NS     = 1[t < n]   on prompts of other subjects for which `true` is right
    EM, PM = e^-n - e^-t and NM = e^-t - e^-n, the magnitudes
Means are over the prompts of a case first, then over cases; S is the harmonic mean of ES, PS, NS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from editing.edit import Edit
from editing.errors import EditingError
from editing.request import EditRequest
from editing.scores import target_scores
from tracer.effect import Estimate
from tracer.errors import FactError
from tracer.facts.bundled import filled
from tracer.model import LanguageModel
from tracer.progress import bar

SCORES = {"ES": "rewrite", "PS": "paraphrase", "NS": "neighborhood"}
MAGNITUDES = {"EM": "rewrite", "PM": "paraphrase", "NM": "neighborhood"}


class Editor(Protocol):
    """Whatever writes requests into a model and returns an edit that can be undone."""

    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> Edit:
        """Writes the requests."""
        ...


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case, each in [0, 1] (magnitudes in [-1, 1]), before and after its edit."""

    case_id: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    diagnostics: Mapping[str, Any]


def evaluate_counterfact(
    model: LanguageModel,
    editor: Editor,
    records: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> Iterator[CaseScores]:
    """Edits, scores and undoes one record after the other (the protocol of single edits).

    A record that cannot be edited counts as a failure of ES and PS; its diagnostics say why.
    """
    with bar(len(records), "CounterFact", show=progress, unit="case") as steps:
        for record in records:
            before = case_scores(model, record)
            try:
                with editor.apply(
                    model, [EditRequest.from_counterfact(dict(record))], seed=seed, progress=False
                ) as edit:
                    after, diagnostics = case_scores(model, record), dict(edit.diagnostics[0])
            except (EditingError, FactError) as error:  # not editable: a failure, and the neighbourhood untouched
                after = {**before, **{name: 0.0 for name in ("ES", "PS") if name in before}}
                diagnostics = {"not_editable": str(error)}
            steps.update()
            yield CaseScores(str(record["case_id"]), before, after, diagnostics)


def case_scores(model: LanguageModel, record: Mapping[str, Any]) -> dict[str, float]:
    """ES, PS, NS, EM, PM, NM of one CounterFact record, as the model is now; a kind without prompts is left out."""
    rewrite = record["requested_rewrite"]
    prompts = {
        "rewrite": [filled(rewrite["prompt"], rewrite["subject"])],
        "paraphrase": record.get("paraphrase_prompts", []),
        "neighborhood": record.get("neighborhood_prompts", []),
    }
    new, true = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
    flat = [prompt for kind in prompts.values() for prompt in kind]
    found = target_scores(model, [(prompt, target) for prompt in flat for target in (new, true)])
    margins = iter(zip(found[::2], found[1::2], strict=True))
    scores: dict[str, float] = {}
    for (score, kind), magnitude in zip(SCORES.items(), MAGNITUDES, strict=True):
        pairs = [next(margins) for _ in prompts[kind]]
        if pairs:
            wanted = [(old, new) if kind == "neighborhood" else (new, old) for new, old in pairs]
            scores[score] = float(np.mean([good.nll < bad.nll for good, bad in wanted]))  # a tie is a failure
            scores[magnitude] = float(np.mean([good.prob - bad.prob for good, bad in wanted]))
    return scores


def summary(cases: Sequence[CaseScores]) -> pd.DataFrame:
    """Mean, 95 % half-width and n of every score before and after, in per cent; S last."""
    rows = []
    for when in ("before", "after"):
        estimates = {
            name: Estimate.of(np.array([getattr(case, when).get(name, np.nan) for case in cases]))
            for name in (*SCORES, *MAGNITUDES)
        }
        for name, value in estimates.items():
            rows.append((when, name, 100 * value.mean, 196 * value.standard_error, value.n))
        rows.append((when, "S", 100 * harmonic_mean([estimates[name].mean for name in SCORES]), np.nan, len(cases)))
    return pd.DataFrame(rows, columns=["when", "score", "mean", "half_width", "n"])


def harmonic_mean(values: Sequence[float]) -> float:
    """The harmonic mean, n / sum(1 / v); 0 if any value is 0."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)
