"""Noise on the subject's embeddings: normal (the published one), uniform, Student's t."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tracer.corrupt.draws import Corruption, Draws
from tracer.corrupt.embeddings import embedding_sigma, studied_subjects, subject_embeddings, tensor_digest
from tracer.errors import FactError
from tracer.fact import Fact, TokenizedFact
from tracer.model import LanguageModel


@dataclass(frozen=True)
class Noise(Corruption):
    """Noise of standard deviation `scale * sigma` in every coordinate of every subject token.

    Attributes:
        scale: in units of sigma; the paper uses 3.
        sigma: standard deviation of the subjects' embeddings; None measures it (`embedding_sigma`).
    """

    scale: float = 3.0
    sigma: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("scale", self.scale), ("sigma", self.sigma)):
            if value is not None and not 0 <= value < float("inf"):
                raise FactError(f"{name}={value} is no noise. Write a number that is not negative.")

    def draws(self, *, samples: int, n_subject: int, d_model: int, seed: int) -> Float[Tensor, "sample subject width"]:
        """The noise itself, float64, the same on every device.

        `d_model` is the width of the token embeddings, which a few models project to a wider stream.
        """
        if self.sigma is None:
            raise FactError(
                f"{type(self).__name__} has no sigma yet: write {type(self).__name__}"
                f"(sigma=embedding_sigma(model, subjects))."
            )
        shape = (samples, n_subject, d_model)
        return torch.from_numpy(self.scale * self.sigma * self._standard(np.random.RandomState(seed), shape))

    @abstractmethod
    def _standard(self, random: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        """Numbers of mean 0 and standard deviation 1."""

    def measured(self, model: LanguageModel, facts: Sequence[Fact] | None = None) -> Self:
        """With sigma measured on the model, unless it was given."""
        if self.sigma is not None:
            return self
        return dataclasses.replace(self, sigma=embedding_sigma(model, studied_subjects(facts)))

    def drawn(self, model: LanguageModel, facts: Sequence[TokenizedFact], samples: int, seed: int) -> Draws:
        """The same draws for every fact."""
        begin, end = facts[0].subject_span
        width = model.anatomy.embedding_size
        return Draws(self.draws(samples=samples, n_subject=end - begin, d_model=width, seed=seed)[None])


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """Normal noise, the published one: numpy.random.RandomState(seed).randn(sample, subject, d_model).

    Attributes:
        full: with the covariance of the subjects' embeddings in place of sigma in every coordinate.
        factor: its Cholesky factor; None measures it.
        digest: of the factor, for records.
    """

    full: bool = False
    factor: Float[Tensor, "width width"] | None = dataclasses.field(default=None, compare=False, repr=False)
    digest: str | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "digest", tensor_digest(self.factor))

    def _standard(self, random: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        return random.randn(*shape)

    def draws(self, *, samples: int, n_subject: int, d_model: int, seed: int) -> Float[Tensor, "sample subject width"]:
        """As `Noise.draws`; with `full`, scale times the factor times normal numbers."""
        if not self.full:
            return super().draws(samples=samples, n_subject=n_subject, d_model=d_model, seed=seed)
        if self.factor is None:
            raise FactError("GaussianNoise(full=True) has no covariance yet: write .measured(model, facts).")
        normal = torch.from_numpy(np.random.RandomState(seed).randn(samples, n_subject, d_model))
        return self.scale * normal @ self.factor.T

    def measured(self, model: LanguageModel, facts: Sequence[Fact] | None = None) -> Self:
        """With sigma, or the covariance, measured on the model."""
        if not self.full or self.factor is not None:
            return super().measured(model, facts)
        rows = subject_embeddings(model, studied_subjects(facts))
        covariance = torch.cov(rows.T)
        ridge = 1e-6 * covariance.trace() / len(covariance)  # fewer subject tokens than coordinates: singular without
        factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64))
        return dataclasses.replace(self, sigma=float(rows.std()), factor=factor)


@dataclass(frozen=True)
class UniformNoise(Noise):
    """Uniform noise of the same standard deviation: between -sqrt(3) and sqrt(3) times scale * sigma."""

    def _standard(self, random: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        return random.uniform(-np.sqrt(3), np.sqrt(3), shape)


@dataclass(frozen=True)
class StudentNoise(Noise):
    """Student t noise of the same standard deviation, with heavier tails.

    Attributes:
        degrees: of freedom, more than 2.
    """

    degrees: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.degrees > 2:
            raise FactError(f"degrees={self.degrees}: Student's t has no variance there. Write degrees=3 or more.")

    def _standard(self, random: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        return random.standard_t(self.degrees, shape) / np.sqrt(self.degrees / (self.degrees - 2))
