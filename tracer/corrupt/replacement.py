"""Another subject in the subject's place, which keeps the prompt like those the model knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tracer.corrupt.draws import Corruption, Draws
from tracer.corrupt.embeddings import embeddings
from tracer.errors import FactError
from tracer.fact import Fact, TokenizedFact
from tracer.facts import bundled, relation_of
from tracer.model import LanguageModel


@dataclass(frozen=True)
class ReplaceSubject(Corruption):
    """Another subject of the same number of tokens: symmetric token replacement (Zhang & Nanda 2024).

    Attributes:
        others: subjects to choose from; None: those of the bundled facts of the same relation, else of all.
    """

    others: tuple[str, ...] | None = None

    def drawn(self, model: LanguageModel, facts: Sequence[TokenizedFact], samples: int, seed: int) -> Draws:
        """Each fact's own subjects, drawn without repetition while there are enough."""
        return Draws(torch.stack([self._of_fact(model, fact, samples, seed) for fact in facts]), replaces=True)

    def replacements(self, model: LanguageModel, fact: TokenizedFact) -> dict[str, tuple[int, ...]]:
        """Subjects that fit, with their token ids in this prompt.

        Raises:
            FactError: none has as many tokens, or the fact is token ids without text.
        """
        if fact.fact is None:
            raise FactError("ReplaceSubject needs the prompt as text: trace a Fact, not bare token ids.")
        begin, end = fact.subject_span
        fitting: dict[str, tuple[int, ...]] = {}
        for subject in self._candidates(fact.fact):
            start, stop = fact.fact.character_span
            prompt = fact.fact.prompt[:start] + subject + fact.fact.prompt[stop:]
            other = Fact(prompt, subject, subject_at=start).preflight(model, warn=False)
            same = other.token_ids[:begin] == fact.token_ids[:begin] and other.token_ids[end:] == fact.token_ids[end:]
            if same and other.subject_span == fact.subject_span:
                fitting[subject] = other.token_ids[begin:end]
        if not fitting:
            raise FactError(
                f"No other subject takes the {end - begin} tokens of {fact.fact.subject!r} here. "
                f"Give some: ReplaceSubject(others=(...,))."
            )
        return fitting

    def _candidates(self, fact: Fact) -> list[str]:
        if self.others is not None:
            return list(self.others)
        known = bundled()
        relation = fact.relation or relation_of(fact.prompt, fact.subject)
        alike = [other.subject for other in known if other.relation == relation]
        return [s for s in dict.fromkeys(alike or [other.subject for other in known]) if s != fact.subject]

    def _of_fact(self, model: LanguageModel, fact: TokenizedFact, samples: int, seed: int) -> Tensor:
        fitting = list(self.replacements(model, fact).values())
        random = np.random.RandomState(seed)
        order = [fitting[n] for n in random.permutation(len(fitting))]
        ids = torch.tensor([order[n % len(order)] for n in range(samples)])
        return embeddings(model, ids)
