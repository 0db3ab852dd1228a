"""Another subject in the subject's place, which keeps the prompt like those the model knows.

Subjects come from facts of the same relation (by its label, or by a prompt of the same words), and
take as many tokens as the one they replace.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tracer.corrupt.draws import Corruption, Draws
from tracer.corrupt.embeddings import embeddings
from tracer.errors import FactError, TracerWarning
from tracer.fact import Fact, TokenizedFact
from tracer.facts import bundled, relation_of
from tracer.facts.digest import facts_digest
from tracer.model import LanguageModel

Ids = tuple[int, ...]


@dataclass(frozen=True)
class ReplaceSubject(Corruption):
    """Another subject of the same number of tokens: symmetric token replacement (Zhang & Nanda 2024).

    Attributes:
        others: subjects to choose from, whatever their relation.
        facts: to choose subjects from, those of the same relation. None takes the facts that are studied
            together; the bundled ones where a fact is traced alone.
        pool: how many facts there are to choose from, and their digest, for records.

    Where no fact of the same relation fits, the bundled ones of that relation are tried; after them subjects of other
    relations are taken, with a warning.
    """

    others: tuple[str, ...] | None = None
    facts: tuple[Fact, ...] | None = dataclasses.field(default=None, compare=False, repr=False)
    pool: str | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.facts is None:
            return
        if self.others is not None:
            raise FactError("ReplaceSubject chooses from others=(...,) or from facts=(...,). Write one of them.")
        pool = f"{len(self.facts)} facts, sha256 {facts_digest(self.facts)[:12]}"
        object.__setattr__(self, "pool", pool)

    def measured(self, model: LanguageModel, facts: Sequence[Fact] | None = None) -> Self:
        """With facts to choose from, unless it was told what to choose from."""
        if self.others is not None or self.facts is not None:
            return self
        return dataclasses.replace(self, facts=tuple(bundled() if facts is None else facts))

    def drawn(self, model: LanguageModel, facts: Sequence[TokenizedFact], samples: int, seed: int) -> Draws:
        """Each fact's own subjects, drawn without repetition while there are enough."""
        return Draws(torch.stack([self._of_fact(model, fact, samples, seed) for fact in facts]), replaces=True)

    def replacements(
        self, model: LanguageModel, fact: TokenizedFact, *, most: int | None = None, seed: int | None = None
    ) -> dict[str, Ids]:
        """Subjects that fit, with their token ids in this prompt.

        Args:
            model: whose tokens are counted.
            fact: whose subject is to be replaced.
            most: no more than this many.
            seed: of a random order; None takes them as they come.

        Raises:
            FactError: none has as many tokens, or the fact is token ids without text.
        """
        if fact.fact is None:
            raise FactError("ReplaceSubject needs the prompt as text: trace a Fact, not bare token ids.")
        random = None if seed is None else np.random.RandomState(seed)
        size = fact.subject_span[1] - fact.subject_span[0]
        for subjects, same_relation in self._choices(fact.fact):
            order = range(len(subjects)) if random is None else random.permutation(len(subjects))
            # Asked one by one, as each has to be tokenised: a relation may have a thousand.
            found = dict(islice(_fitting(model, fact, (subjects[n] for n in order)), most))
            if found and not same_relation:
                warnings.warn(
                    f"No other subject of this relation takes the {size} tokens of {fact.fact.subject!r} in "
                    f"{fact.fact.prompt!r}: subjects of other relations replace it.",
                    TracerWarning,
                    stacklevel=2,
                )
            if found:
                return found
        raise FactError(
            f"No other subject takes the {size} tokens of {fact.fact.subject!r} here. "
            f"Give some: ReplaceSubject(others=(...,))."
        )

    def _choices(self, fact: Fact) -> Iterator[tuple[list[str], bool]]:
        """Subjects to choose from, the best first, and whether they are of the fact's relation."""
        if self.others is not None:
            yield list(self.others), True
            return
        pools = [bundled() if self.facts is None else self.facts, bundled()]
        for facts in pools:
            yield _subjects(_of_same_relation(fact, facts), fact), True
        for facts in pools:
            yield _subjects(facts, fact), False

    def _of_fact(self, model: LanguageModel, fact: TokenizedFact, samples: int, seed: int) -> Tensor:
        chosen = list(self.replacements(model, fact, most=samples, seed=seed).values())
        return embeddings(model, torch.tensor([chosen[n % len(chosen)] for n in range(samples)]))


def _of_same_relation(fact: Fact, facts: Iterable[Fact]) -> list[Fact]:
    relations = {fact.relation, relation_of(fact.prompt, fact.subject)} - {None}
    template = _template(fact)

    def alike(other: Fact) -> bool:
        if other.relation in relations:
            return True
        labelled = fact.relation is not None and other.relation is not None
        return not labelled and _template(other) == template

    return [other for other in facts if alike(other)]


def _template(fact: Fact) -> tuple[str, str]:
    """The prompt's words before and after the subject."""
    begin, end = fact.character_span
    return fact.prompt[:begin], fact.prompt[end:]


def _subjects(facts: Iterable[Fact], but: Fact) -> list[str]:
    """Each once, in order, but for this fact's own."""
    return [s for s in dict.fromkeys(fact.subject.strip() for fact in facts) if s != but.subject.strip()]


def _fitting(model: LanguageModel, fact: TokenizedFact, subjects: Iterable[str]) -> Iterator[tuple[str, Ids]]:
    """Those of the subjects that take the same tokens of the prompt, with their ids; all else stays as it is."""
    assert fact.fact is not None
    (begin, end), (start, stop) = fact.subject_span, fact.fact.character_span
    before, after = fact.fact.prompt[:start], fact.fact.prompt[stop:]
    for subject in subjects:
        other = Fact(before + subject + after, subject, subject_at=start).preflight(model, warn=False)
        same = other.token_ids[:begin] == fact.token_ids[:begin] and other.token_ids[end:] == fact.token_ids[end:]
        if same and other.subject_span == fact.subject_span:
            yield subject, other.token_ids[begin:end]
