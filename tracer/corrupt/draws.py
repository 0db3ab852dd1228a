"""What a corruption is, and the draws that it makes."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

from tracer.fact import Fact, TokenizedFact
from tracer.model import LanguageModel


@dataclass(frozen=True)
class Draws:
    """What a corruption does to the subject's embeddings in each sample.

    Attributes:
        values: float64; `fact` is 1 where they are the same for every fact, width that of the embeddings.
        replaces: they take the embeddings' place; else they are added.
    """

    values: Float[Tensor, "fact sample subject width"]
    replaces: bool = False

    @classmethod
    def of(cls, noise: Draws | Float[Tensor, "sample subject width"]) -> Draws:
        """Draws; a tensor is noise to add, the same for every fact."""
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

    def onto(self, embedded: Float[Tensor, "fact sample subject width"]) -> Float[Tensor, "fact sample subject width"]:
        """The corrupted embeddings."""
        values = self.values.to(embedded.device)
        return values.to(embedded.dtype).expand_as(embedded) if self.replaces else embedded + values.to(embedded)


class Corruption(ABC):
    """What corrupts a subject. Small frozen values that say what they need; `measured` fills it in."""

    def measured(self, model: LanguageModel, facts: Sequence[Fact] | None = None) -> Self:
        """The same with all that it takes from the model and the facts studied; these default to the bundled ones."""
        return self

    @abstractmethod
    def drawn(self, model: LanguageModel, facts: Sequence[TokenizedFact], samples: int, seed: int) -> Draws:
        """The draws of these facts, which have the same length and subject span."""

    def label(self) -> str:
        """Name and settings, for records: "GaussianNoise(scale=3.0, sigma=0.031, full=False)"."""
        fields: tuple[Any, ...] = dataclasses.fields(self)  # pyright: ignore[reportArgumentType] - all are dataclasses
        shown = [f.name for f in fields if f.repr and getattr(self, f.name) is not None]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"
