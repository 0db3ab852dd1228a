"""Does the model still write ordinary language? Its perplexity on a fixed text, before edits and after.

perplexity = exp(sum of nll / tokens)      ratio = perplexity after / before
Many edits, or one bad one, can ruin a model while each new fact is still said. The passages below were
written for this project; no edit is about them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from editing.errors import EditingWarning, RequestError
from editing.scoring.distributions import MAX_BYTES, Distributions, Moved
from editing.scoring.scores import Pair, TargetScore, target_scores
from tracer.errors import NumericsError
from tracer.model import LanguageModel

FACTOR = 1.5  # growth of perplexity that is called a collapse
PASSAGES = (
    "When the rain stopped, the children ran out into the garden and looked for snails under the wet leaves.",
    "She closed the book, put it back on the shelf, and asked whether anyone would like another cup of tea.",
    "The train was late again, so we waited on the platform and talked about what we would cook that evening.",
    "To make the dough, mix flour, water and a little salt, then let it rest in a warm place for an hour.",
    "The old bridge had been closed for repairs, and everyone had to take the long way around the hill.",
    "He could not remember where he had left his keys, although he had looked in every room of the house.",
    "A good map shows not only roads and rivers but also how steep the ground is between two villages.",
    "If the engine does not start, check the battery first, and then make sure that there is fuel in the tank.",
    "Our neighbours keep a few hens, and on Sundays they bring us eggs in a small basket covered with a cloth.",
    "The meeting lasted much longer than planned because nobody had read the report before coming.",
    "In winter the lake freezes over, and people from the town skate on it until the sun goes down.",
    "They painted the kitchen yellow, hung new curtains, and were surprised how much larger the room looked.",
)


@dataclass(frozen=True)
class GeneralText:
    """How a model reads the fixed text.

    Attributes:
        perplexity: a token, now.
        ratio: of it to that before the edits.
        kl: mean KL from the distributions before, nats a token, over the tokens that were kept.
        collapsed: the ratio is beyond the alarm's factor, or no number.
    """

    perplexity: float
    ratio: float
    kl: float
    collapsed: bool


class CollapseAlarm:
    """Perplexity on a fixed text against that of the model as it was when the alarm was set.

    Attributes:
        pairs: what is read, the first word of each passage as the prompt.
        perplexity: at that time.
        distributions: of the model at that time.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        passages: Sequence[str] = PASSAGES,
        factor: float = FACTOR,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Reads the text.

        Args:
            model: as it is before the edits.
            passages: each read from its first word on.
            factor: growth of perplexity that rings.
            max_bytes: of distributions kept for KL; the text is of some 250 tokens, a number each for every word.

        Raises:
            RequestError: a factor that would always ring, or a passage of one word.
        """
        if not factor > 1:
            raise RequestError(f"factor={factor} would ring without any edit. Write factor={FACTOR}.")
        self.model, self.factor = model, factor
        self.distributions = Distributions(max_bytes)
        self.pairs = [_split(passage) for passage in passages]
        self.perplexity = _perplexity(target_scores(model, self.pairs, visit=self.distributions.keep))

    def read(self, *, warn: bool = True) -> GeneralText:
        """The fixed text as the model reads it now; warns where its perplexity has grown beyond the factor."""
        moved = Moved(self.distributions)
        try:
            scores = dict(zip(self.pairs, target_scores(self.model, self.pairs, visit=moved), strict=True))
        except NumericsError:  # a model of NaN says nothing
            scores = None
        found = self.judged(scores, moved)
        if found.collapsed and warn:
            warnings.warn(
                f"{self.model.name}: perplexity on ordinary text is {found.ratio:.2f} times what it was before the "
                f"edits ({self.perplexity:.1f} -> {found.perplexity:.1f}): the model is losing its language. Undo the "
                f"last edits.",
                EditingWarning,
                stacklevel=2,
            )
        return found

    def judged(self, scores: Mapping[Pair, TargetScore] | None, moved: Moved) -> GeneralText:
        """What scores of `pairs` say of the text, None where there are none, and how far its distributions moved."""
        perplexity = math.inf if scores is None else _perplexity([scores[pair] for pair in self.pairs])
        ratio = perplexity / self.perplexity
        kl = [value for pair in self.pairs for value in moved.values.get(pair, ())]
        return GeneralText(perplexity, ratio, float(np.mean(kl)) if kl else math.nan, not ratio <= self.factor)


def _split(passage: str) -> Pair:
    first, _, rest = passage.strip().partition(" ")
    if not rest.strip():
        raise RequestError(f"The passage {passage!r} has one word; there is nothing to predict.")
    return first, rest


def _perplexity(scores: Sequence[TargetScore]) -> float:
    mean = sum(score.nll_sum for score in scores) / sum(len(score.target) for score in scores)
    return math.exp(mean) if mean < 700 else math.inf
