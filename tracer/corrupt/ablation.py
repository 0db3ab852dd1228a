"""Ablations: the subject's embeddings lose what they say, by other tokens', by their mean or by zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tracer.corrupt.draws import Corruption, Draws
from tracer.corrupt.embeddings import studied_subjects, subject_embeddings, tensor_digest
from tracer.errors import FactError
from tracer.fact import Fact, TokenizedFact
from tracer.model import LanguageModel


@dataclass(frozen=True)
class ResampleAblation(Corruption):
    """Each subject token becomes a token of another subject, drawn with repetition; the order of words is lost.

    Attributes:
        rows: embeddings to draw from, [token, width]; None measures them.
        digest: of the rows, for records.
    """

    rows: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)
    digest: str | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", tensor_digest(self.rows))

    def measured(self, model: LanguageModel, facts: Sequence[Fact] | None = None) -> Self:
        """With the embeddings of the subjects' tokens."""
        if self.rows is not None:
            return self
        return dataclasses.replace(self, rows=subject_embeddings(model, studied_subjects(facts)))

    def drawn(self, model: LanguageModel, facts: Sequence[TokenizedFact], samples: int, seed: int) -> Draws:
        """The same draws for every fact."""
        rows, (begin, end) = _needed(self.rows, self), facts[0].subject_span
        chosen = np.random.RandomState(seed).randint(len(rows), size=(1, samples, end - begin))
        return Draws(rows[torch.from_numpy(chosen)], replaces=True)


@dataclass(frozen=True)
class MeanAblation(Corruption):
    """Each subject token's embedding becomes the mean over the subjects' tokens. All samples are alike.

    Attributes:
        mean: [width]; None measures it.
        digest: of the mean, for records.
    """

    mean: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)
    digest: str | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", tensor_digest(self.mean))

    def measured(self, model: LanguageModel, facts: Sequence[Fact] | None = None) -> Self:
        """With the mean over the subjects' tokens."""
        if self.mean is not None:
            return self
        return dataclasses.replace(self, mean=subject_embeddings(model, studied_subjects(facts)).mean(0))

    def drawn(self, model: LanguageModel, facts: Sequence[TokenizedFact], samples: int, seed: int) -> Draws:
        """The mean, in every sample."""
        mean, (begin, end) = _needed(self.mean, self), facts[0].subject_span
        return Draws(mean.expand(1, samples, end - begin, -1), replaces=True)


@dataclass(frozen=True)
class ZeroAblation(Corruption):
    """Each subject token's embedding becomes zero. All samples are alike."""

    def drawn(self, model: LanguageModel, facts: Sequence[TokenizedFact], samples: int, seed: int) -> Draws:
        """Zeros in place of the subject's embeddings."""
        begin, end = facts[0].subject_span
        width = model.anatomy.embedding_size
        return Draws(torch.zeros(1, samples, end - begin, width, dtype=torch.float64), replaces=True)


def _needed(measured: Tensor | None, corruption: object) -> Tensor:
    if measured is None:
        raise FactError(f"{type(corruption).__name__} was not measured yet: write .measured(model, facts).")
    return measured
