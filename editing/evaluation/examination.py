"""Asks cases of a model, before edits and after: one teacher-forced pass for all of them, then free-running text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from editing.datasets.case import Case
from editing.errors import EvaluationError
from editing.evaluation.unedited import UneditedModel
from editing.metrics import of_cases
from editing.metrics.alarms import PASSAGES, CollapseAlarm, GeneralText
from editing.metrics.fluency import Snippets, TfIdf, consistency, fluency
from editing.scoring.distributions import MAX_BYTES, Moved
from editing.scoring.generation import answers, seeded_samples
from editing.scoring.scores import target_scores
from tracer.model import LanguageModel
from tracer.model.inputs import target_encoding

SPECIAL = 8  # tokens that a tokenizer adds, at most


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked beside the teacher-forced scores.

    Attributes:
        free: greedy answers to prompts that should change, for gen_exact and gen_contains.
        kl: how far distributions of prompts that should stay have moved.
        text: how many passages of the fixed text are read after each edit, for perplexity against before and KL;
            sequences read all of them at each checkpoint anyway.
        known_hops: one-hop questions whose second hop the unedited model knows, also as a group of their own.
        writing: sampled texts, for fluency (and consistency, where there are snippets); the slowest part.
        snippets: reference texts by (relation, id of the object).
        seed: of the sampled texts; equal before and after.
    """

    free: bool = True
    kl: bool = True
    text: int = 0
    known_hops: bool = False
    writing: bool = False
    snippets: Snippets | None = None
    seed: int = 0


class Examination:
    """One model, what it said before its edits, and what is asked of it."""

    def __init__(
        self,
        model: LanguageModel,
        questions: Questions | None = None,
        *,
        folder: str | Path | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.model, self.questions = model, questions or Questions()
        self.unedited = UneditedModel(model, folder, max_bytes=max_bytes)
        snippets = self.questions.snippets
        self._alarm = CollapseAlarm(model, passages=PASSAGES[: self.questions.text]) if self.questions.text else None
        self._weights = TfIdf.fitted([text for texts in snippets.values() for text in texts]) if snippets else None

    def check_lengths(self, cases: Sequence[Case]) -> None:
        """Raises EvaluationError where the model cannot read what is asked of a case, and says which."""
        most = math.inf if self.model.context_length is None else self.model.context_length
        for case, group in ((one, group) for one in cases for group in one.groups):
            for prompt, target in (pair for ask in group.asks for pair in ask.pairs):
                if len(prompt.encode()) + len(target.encode()) + SPECIAL <= most:
                    continue  # a token is a byte at least
                read = len(target_encoding(self.model, prompt, target).ids) - 1
                if read > most:
                    raise EvaluationError(
                        f"Case {case.id}, {group.name}: {prompt[:60]!r}... has {read} tokens with its answer; "
                        f"{self.model.name} takes {most}. Leave the record out of the file, or that prompt."
                    )

    def before(self, cases: Sequence[Case]) -> list[dict[str, float]]:
        """The metrics of the unedited model. Call it before the edit: it is what `after` compares with."""
        pairs = [pair for case in cases for pair in case.pairs]
        staying = [pair for case in cases for pair in case.staying] if self.questions.kl else []
        scores = self.unedited.ask(pairs, keep=staying)
        texts = self.unedited.texts(_changing(cases)) if self.questions.free else None
        as_before = dict.fromkeys(of_cases.GENERAL_TEXT, 0.0) | {"perplexity_ratio": 1.0} if self._alarm else {}
        return [of_cases.case_metrics(case, scores, texts=texts) | as_before | self._writing(case) for case in cases]

    def after(self, cases: Sequence[Case]) -> list[dict[str, float]]:
        """The metrics of the model as it is now, compared with what it said in `before`."""
        pairs, text = list(dict.fromkeys(pair for case in cases for pair in case.pairs)), self._alarm
        read = list(dict.fromkeys([*pairs, *(text.pairs if text else ())]))
        kept = [self.unedited.distributions] if self.questions.kl else []
        moved = Moved(*kept, *([text.distributions] if text else []))
        scores = dict(zip(read, target_scores(self.model, read, visit=moved), strict=True))
        prompts = list(dict.fromkeys(_changing(cases))) if self.questions.free else []
        texts = dict(zip(prompts, answers(self.model, prompts), strict=True)) if self.questions.free else None
        whole = {pair: values for pair, values in moved.values.items() if len(values) == len(scores[pair].target)}
        divergences = {pair: float(np.mean(values)) for pair, values in whole.items()}
        told: Mapping[str, Any] = {"base": self.unedited.scores(pairs), "divergences": divergences, "texts": texts}
        now = _general(text.judged(scores, moved)) if text else {}
        return [of_cases.case_metrics(case, scores, **told) | now | self._writing(case) for case in cases]

    def failed(self, case: Case, before: Mapping[str, float]) -> dict[str, float]:
        """What `after` would give, of a case that could not be edited."""
        return of_cases.failed(case, before, kl=self.questions.kl)

    def lost(self, case: Case, before: Mapping[str, float]) -> dict[str, float]:
        """The same of one after whose edit the model gives NaN."""
        return of_cases.lost(case, before, kl=self.questions.kl)

    def forget(self) -> None:
        """Drops the distributions of cases that are done."""
        self.unedited.distributions.forget()

    def _writing(self, case: Case) -> dict[str, float]:
        """Fluency and consistency of one case."""
        if not (self.questions.writing and case.samples):
            return {}
        labels = [f"{self.questions.seed}/{case.id}/{number}" for number in range(len(case.samples))]
        texts = seeded_samples(self.model, case.samples, labels)
        found = {"fluency": fluency(texts)}
        snippets = (self.questions.snippets or {}).get(case.topic) if case.topic else None
        if self._weights is not None and snippets:
            found["consistency"] = consistency(texts, snippets, self._weights)
        return found


def _changing(cases: Sequence[Case]) -> list[str]:
    """Prompts that the edit should change."""
    return [ask.prompt for case in cases for group in case.groups if not group.stays for ask in group.asks]


def _general(text: GeneralText) -> dict[str, float]:
    """How the model reads the fixed text, as metrics; the same for all cases that are written at once."""
    return dict(zip(of_cases.GENERAL_TEXT, (min(text.ratio, of_cases.MOST_RATIO), text.kl), strict=True))
