"""CounterFact's scores of single edits, without a folder: for a few records, and as one step of something larger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from editing.datasets.benchmarks import counterfact_cases
from editing.datasets.case import CaseScores
from editing.editors import Editor
from editing.evaluation.examination import Examination, Questions
from editing.evaluation.single import single_edits
from tracer.model import LanguageModel

SCORES = ("ES", "PS", "NS")
MAGNITUDES = ("efficacy_magnitude", "paraphrase_magnitude", "neighborhood_magnitude")


def evaluate_counterfact(
    model: LanguageModel,
    editor: Editor,
    records: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> Iterator[CaseScores]:
    """Edits, scores and undoes one record after the other, teacher-forced only (see `single_edits`).

    Raises:
        EvaluationError: a record that is none of CounterFact.
    """
    cases = counterfact_cases(records)
    examination = Examination(model, Questions(free=False, kl=False))
    yield from single_edits(examination, editor, cases, seed=seed, progress=progress)
