"""Corruptions of the subject: what is done to the embeddings of its tokens before the model runs.

    h*[0][i] = h[0][i] + eps   or   h*[0][i] = e,   i in the subject
Gaussian noise of three sigma is the published one (Meng et al. 2022, sec. 2.1), sigma being the
standard deviation of the embeddings of the subjects studied. Noise drives the model off the data;
replacing the subject by another one keeps it there (Zhang & Nanda 2024).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tracer.errors import FactError
from tracer.fact import Fact, TokenizedFact
from tracer.facts import bundled, relation_of
from tracer.model import LanguageModel


@dataclass(frozen=True)
class Draws:
    """What a corruption does to the subject's embeddings in each sample.

    Attributes:
        values: float64 [fact or 1, sample, subject token, width].
        replaces: they take the embeddings' place; else they are added.
    """

    values: Tensor
    replaces: bool = False

    @classmethod
    def of(cls, noise: Draws | Tensor) -> Draws:
        """Draws; a tensor [sample, subject token, width] is noise to add, the same for every fact."""
        return noise if isinstance(noise, Draws) else cls(noise[None])

    @property
    def samples(self) -> int:
        """How many draws there are."""
        return self.values.shape[1]

    def of_fact(self, number: int) -> Draws:
        """Those of one fact."""
        return Draws(self.values[min(number, len(self.values) - 1)][None], self.replaces)

    def of_samples(self, chosen: slice) -> Draws:
        """Some of the samples."""
        return Draws(self.values[:, chosen], self.replaces)

    def onto(self, embedded: Tensor) -> Tensor:
        """The corrupted embeddings, [fact, sample, subject token, width] as `embedded`."""
        values = self.values.to(embedded.device)
        return values.to(embedded.dtype).expand_as(embedded) if self.replaces else embedded + values.to(embedded)


class Corruption(Protocol):
    """What corrupts a subject. Small values that say what they need; `measured` fills it in."""

    def measured(self, model: LanguageModel, subjects: Sequence[str] | None = None) -> Corruption:
        """The same with all that it takes from the model; `subjects` default to those of the bundled facts."""
        ...

    def drawn(self, model: LanguageModel, facts: Sequence[TokenizedFact], samples: int, seed: int) -> Draws:
        """The draws of these facts, which have the same length and subject span."""
        ...

    def label(self) -> str:
        """Name and settings, for records."""
        ...


@dataclass(frozen=True)
class Noise:
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

    def draws(self, *, samples: int, n_subject: int, d_model: int, seed: int) -> Tensor:
        """The noise itself, float64 [sample, subject, d_model], the same on every device.

        `d_model` is the width of the token embeddings, which a few models project to a wider stream.
        """
        if self.sigma is None:
            raise FactError(
                f"{type(self).__name__} has no sigma yet: write {type(self).__name__}"
                f"(sigma=embedding_sigma(model, subjects))."
            )
        shape = (samples, n_subject, d_model)
        return torch.from_numpy(self.scale * self.sigma * self._standard(np.random.RandomState(seed), shape))

    def _standard(self, random: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        raise NotImplementedError

    def measured(self, model: LanguageModel, subjects: Sequence[str] | None = None) -> Any:
        """With sigma measured on the model, unless it was given."""
        if self.sigma is not None:
            return self
        return dataclasses.replace(self, sigma=embedding_sigma(model, _subjects(subjects)))

    def drawn(self, model: LanguageModel, facts: Sequence[TokenizedFact], samples: int, seed: int) -> Draws:
        """The same draws for every fact."""
        begin, end = facts[0].subject_span
        width = model.anatomy.embedding_size
        return Draws(self.draws(samples=samples, n_subject=end - begin, d_model=width, seed=seed)[None])

    def label(self) -> str:
        """E.g. "GaussianNoise(scale=3.0, sigma=0.031)"."""
        return _label(self)


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """Normal noise, the published one: numpy.random.RandomState(seed).randn(sample, subject, d_model).

    Attributes:
        full: with the covariance of the subjects' embeddings in place of sigma in every coordinate.
        factor: its Cholesky factor [width, width]; None measures it.
    """

    full: bool = False
    factor: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)

    def _standard(self, random: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        return random.randn(*shape)

    def draws(self, *, samples: int, n_subject: int, d_model: int, seed: int) -> Tensor:
        """As `Noise.draws`; with `full`, scale times the factor times normal numbers."""
        if not self.full:
            return super().draws(samples=samples, n_subject=n_subject, d_model=d_model, seed=seed)
        if self.factor is None:
            raise FactError("GaussianNoise(full=True) has no covariance yet: write .measured(model, subjects).")
        normal = torch.from_numpy(np.random.RandomState(seed).randn(samples, n_subject, d_model))
        return self.scale * normal @ self.factor.T

    def measured(self, model: LanguageModel, subjects: Sequence[str] | None = None) -> GaussianNoise:
        """With sigma, or the covariance, measured on the model."""
        if not self.full or self.factor is not None:
            return super().measured(model, subjects)
        rows = subject_embeddings(model, _subjects(subjects))
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


@dataclass(frozen=True)
class ReplaceSubject:
    """Another subject of the same number of tokens: symmetric token replacement (Zhang & Nanda 2024).

    Attributes:
        others: subjects to choose from; None: those of the bundled facts of the same relation, else of all.
    """

    others: tuple[str, ...] | None = None

    def measured(self, model: LanguageModel, subjects: Sequence[str] | None = None) -> ReplaceSubject:
        """Needs nothing of the model."""
        return self

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

    def label(self) -> str:
        """E.g. "ReplaceSubject(others=None)"."""
        return _label(self)


@dataclass(frozen=True)
class ResampleAblation:
    """Each subject token becomes a token of another subject, drawn with repetition; the order of words is lost.

    Attributes:
        rows: embeddings to draw from, [token, width]; None measures them.
    """

    rows: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)

    def measured(self, model: LanguageModel, subjects: Sequence[str] | None = None) -> ResampleAblation:
        """With the embeddings of the subjects' tokens."""
        return self if self.rows is not None else ResampleAblation(subject_embeddings(model, _subjects(subjects)))

    def drawn(self, model: LanguageModel, facts: Sequence[TokenizedFact], samples: int, seed: int) -> Draws:
        """The same draws for every fact."""
        rows, (begin, end) = _needed(self.rows, self), facts[0].subject_span
        chosen = np.random.RandomState(seed).randint(len(rows), size=(1, samples, end - begin))
        return Draws(rows[torch.from_numpy(chosen)], replaces=True)

    def label(self) -> str:
        """The class name."""
        return _label(self)


@dataclass(frozen=True)
class MeanAblation:
    """Each subject token's embedding becomes the mean over the subjects' tokens. All samples are alike.

    Attributes:
        mean: [width]; None measures it.
    """

    mean: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)

    def measured(self, model: LanguageModel, subjects: Sequence[str] | None = None) -> MeanAblation:
        """With the mean over the subjects' tokens."""
        return self if self.mean is not None else MeanAblation(subject_embeddings(model, _subjects(subjects)).mean(0))

    def drawn(self, model: LanguageModel, facts: Sequence[TokenizedFact], samples: int, seed: int) -> Draws:
        """The mean, in every sample."""
        mean, (begin, end) = _needed(self.mean, self), facts[0].subject_span
        return Draws(mean.expand(1, samples, end - begin, -1), replaces=True)

    def label(self) -> str:
        """The class name."""
        return _label(self)


@dataclass(frozen=True)
class ZeroAblation:
    """Each subject token's embedding becomes zero. All samples are alike."""

    def measured(self, model: LanguageModel, subjects: Sequence[str] | None = None) -> ZeroAblation:
        """Needs nothing of the model."""
        return self

    def drawn(self, model: LanguageModel, facts: Sequence[TokenizedFact], samples: int, seed: int) -> Draws:
        """Zeros."""
        begin, end = facts[0].subject_span
        width = model.anatomy.embedding_size
        return Draws(torch.zeros(1, samples, end - begin, width, dtype=torch.float64), replaces=True)

    def label(self) -> str:
        """The class name."""
        return _label(self)


# By the names that the command line takes.
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian": GaussianNoise(),
    "full": GaussianNoise(full=True),
    "uniform": UniformNoise(),
    "student": StudentNoise(),
    "replace": ReplaceSubject(),
    "resample": ResampleAblation(),
    "mean": MeanAblation(),
    "zero": ZeroAblation(),
}


def embeddings(model: LanguageModel, ids: Tensor) -> Tensor:
    """What the embedding module gives for token ids [...]: float64 [..., width] on the CPU."""
    with torch.inference_mode():
        found = model.anatomy.embedding(ids.to(model.device)).cpu().double()
    return found.clone()


def subject_embeddings(model: LanguageModel, subjects: Iterable[str]) -> Tensor:
    """Embeddings of the subjects' tokens, without special tokens; float64 [token, width]."""
    if model.tokenizer is None:
        raise FactError("This model has no tokenizer, so sigma cannot be measured: give GaussianNoise(sigma=...).")
    ids = [token for s in subjects for token in model.tokenizer(s, add_special_tokens=False)["input_ids"]]
    if not ids:
        raise FactError("No subjects to measure the noise from. Give at least one fact.")
    return embeddings(model, torch.tensor(ids))


def embedding_sigma(model: LanguageModel, subjects: Iterable[str]) -> float:
    """Standard deviation of all embedding entries of the subjects' tokens, without special tokens.

    Source: Meng et al. 2022, appendix B.1 (there over the subjects of the facts traced).
    """
    return float(subject_embeddings(model, subjects).std())


def _subjects(subjects: Sequence[str] | None) -> Sequence[str]:
    return [fact.subject for fact in bundled()] if subjects is None else subjects


def _needed(measured: Tensor | None, corruption: object) -> Tensor:
    if measured is None:
        raise FactError(f"{type(corruption).__name__} was not measured yet: write .measured(model, subjects).")
    return measured


def _label(corruption: Any) -> str:
    shown = [f.name for f in dataclasses.fields(corruption) if f.repr and getattr(corruption, f.name) is not None]
    return f"{type(corruption).__name__}({', '.join(f'{name}={getattr(corruption, name)!r}' for name in shown)})"
