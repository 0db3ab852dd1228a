"""What every network that edits is: from the gradient's factors to a change of each matrix, a row an edit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from editing.meta_learning.factors import Factors, gradient_factors
from editing.meta_learning.matrices import Sizes, matrix
from editing.meta_learning.side_terms import SideTerm
from editing.meta_learning.texts import Texts
from editing.scoring.generation import answers
from tracer.model import LanguageModel

Said = Callable[[Iterable[str]], Mapping[str, str]]


@dataclass(frozen=True)
class Asked:
    """An edit in words: a prompt, its new answer, and what the model says now ("" where nobody reads that)."""

    prompt: str
    new: str
    predicted: str = ""


class Hypernetwork(nn.Module, ABC):
    """A network that edits.

    Attributes:
        sizes: of the matrices it changes, by weight name.
        smoothing: of the labels in the loss whose gradient it reads.
        answer_tokens: of the model's present answer that it reads; 0: none.
        embedding_size: of the tokens that it reads; 0: none.
    """

    smoothing: float = 0.0
    answer_tokens: int = 0
    embedding_size: int = 0

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = dict(sizes)

    @abstractmethod
    def terms(
        self, model: LanguageModel, factors: Mapping[str, Factors], asked: Sequence[Asked]
    ) -> dict[str, SideTerm]:
        """The change of each matrix, from factors in this network's own type."""

    def proposed(self, texts: Texts, asked: Sequence[Asked], scale: Tensor | None = None) -> dict[str, SideTerm]:
        """The change of each matrix for each row of `texts`, its gradient's loss times `scale` [row]."""
        model, own = texts.model, next(self.parameters())
        found = gradient_factors(texts, self.matrices(model), smoothing=self.smoothing, scale=scale)
        wide = {weight: Factors(each.inputs.to(own), each.deltas.to(own)) for weight, each in found.items()}
        return self.terms(model, wide, asked)

    def matrices(self, model: LanguageModel) -> dict[str, nn.Module]:
        """The modules it changes, by weight name."""
        return {weight: matrix(model, weight) for weight in self.sizes}

    def asked(self, model: LanguageModel, pairs: Sequence[tuple[str, str]], *, said: Said | None = None) -> list[Asked]:
        """(prompt, new) pairs, with what the model says now where this network reads that.

        Args:
            model: that says it.
            pairs: the edits.
            said: of a `Shelf`, which may know that.
        """
        if not self.answer_tokens:
            return [Asked(prompt, new.strip()) for prompt, new in pairs]
        now = (said or partial(self.said, model))(prompt for prompt, _ in pairs)
        return [Asked(prompt, new.strip(), now[prompt]) for prompt, new in pairs]

    def said(self, model: LanguageModel, prompts: Iterable[str]) -> dict[str, str]:
        """What the model says now to each prompt, as much of it as this network reads."""
        several = list(dict.fromkeys(prompts)) if self.answer_tokens else []
        found = answers(model, several, new_tokens=self.answer_tokens)
        return {prompt: now.strip() for prompt, now in zip(several, found, strict=True)}
