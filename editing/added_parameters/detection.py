"""Does a model know a fact? Its probability in the fact's own templates against that in unrelated ones.

    score = mean over templates of p(answer | template(subject)) / mean over unrelated templates of the same
A score below 1: the answer is no more probable where it belongs than anywhere, the fact is a false one and
worth calibrating (Dong et al. 2022, arXiv:2210.03329, sec. 2: contrastive knowledge assessing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.errors import RequestError
from editing.scoring.scores import Pair, target_scores
from tracer.facts import templates
from tracer.facts.bundled import filled
from tracer.model import LanguageModel

UNRELATED = 3


@dataclass(frozen=True)
class Known:
    """Mean probabilities of an answer.

    Attributes:
        related: in the fact's own templates.
        unrelated: in those of other relations.
    """

    related: float
    unrelated: float

    @property
    def score(self) -> float:
        """Their ratio; below 1 the model does not know the fact."""
        return self.related / self.unrelated if self.unrelated else math.inf


def known(
    model: LanguageModel,
    subject: str,
    answer: str,
    own: Sequence[str],
    unrelated: Sequence[str],
    *,
    first_token: bool = False,
) -> Known:
    """Assesses one fact.

    Args:
        model: as it is now.
        subject: put in place of the {} of each template.
        answer: that may follow.
        own: templates of the fact's relation.
        unrelated: of others; `unrelated_templates` draws some.
        first_token: read the answer's first token alone, as published, not the geometric mean of all.

    Raises:
        RequestError: no templates, or one without its {}.
    """
    for template in (*own, *unrelated):
        if template.count("{}") != 1:
            raise RequestError(f"{template!r} is no template. Write one {{}} where the subject goes.")
    if not own or not unrelated:
        raise RequestError("Templates of both kinds are needed, those of the fact's relation and unrelated ones.")
    pairs = [(filled(template, subject), answer) for template in (*own, *unrelated)]
    first: dict[Pair, Tensor] = {}

    def visit(pair: Pair, place: int, log_probs: Tensor) -> None:
        if place == 0:
            first[pair] = log_probs.exp()

    scores = list(zip(pairs, target_scores(model, pairs, visit=visit), strict=True))
    found = [float(first[pair][score.target[0]]) if first_token else score.prob for pair, score in scores]
    parts = (found[: len(own)], found[len(own) :])
    return Known(*(sum(part) / len(part) for part in parts))


def unrelated_templates(relation: str, *, count: int = UNRELATED, seed: int = 0) -> tuple[str, ...]:
    """Bundled templates of other relations, one of each.

    Raises:
        RequestError: more than there are other relations.
    """
    others = [ways for name, ways in templates().items() if name != relation]
    if not 0 < count <= len(others):
        raise RequestError(f"count={count}: there are {len(others)} other relations. Write count={UNRELATED}.")
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(others[place][0] for place in order[:count])
