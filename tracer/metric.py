"""What is read off the last position's logits. Effects are differences of it, in its unit.

The published metric is the answer's probability. Differences of logits and log-probabilities see
sites that probability, near 0 or 1, hides (Zhang & Nanda 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from jaxtyping import Float, Int
from torch import Tensor

from tracer.errors import SiteError

MetricName = Literal["probability", "log_probability", "logit", "logit_difference", "kl", "rank"]
Sense = Literal[1, -1]
UNITS: dict[str, str] = {
    "probability": "probability",
    "log_probability": "nats",
    "logit": "logits",
    "logit_difference": "logits",
    "kl": "nats",
    "rank": "places",
}
METRIC_WORDS = {
    "probability": "p(answer)",
    "log_probability": "log p(answer)",
    "logit": "the answer's logit",
    "logit_difference": "the logit difference",
    "kl": "KL from the clean run",
    "rank": "the answer's rank",
}


Logits = Float[Tensor, "row vocab"]
Ids = Int[Tensor, " row"]
Values = Float[Tensor, " row"]
Clean = Float[Tensor, "#row vocab"]  # of each row, or of all


class Metric(Protocol):
    """A number for each row of logits."""

    @property
    def name(self) -> MetricName:
        """What it is called in `tracer.trace`."""
        ...

    @property
    def sense(self) -> Sense:
        """1 where more of it is nearer to the clean answer, -1 where less is."""
        ...

    def of(self, logits: Logits, answers: Ids, others: Ids | None, clean: Clean) -> Values:
        """The metric of each row.

        Args:
            logits: float32 or wider.
            answers: token ids.
            others: token ids of the alternative answers.
            clean: logits of the clean run.
        """
        ...


@dataclass(frozen=True)
class Probability:
    """p(answer): the softmax of the logits at the answer."""

    name: MetricName = "probability"
    sense: Sense = 1

    def of(self, logits: Logits, answers: Ids, others: Ids | None, clean: Clean) -> Values:
        """exp(logit - logsumexp)."""
        return LogProbability().of(logits, answers, others, clean).exp()


@dataclass(frozen=True)
class LogProbability:
    """log p(answer), in nats."""

    name: MetricName = "log_probability"
    sense: Sense = 1

    def of(self, logits: Logits, answers: Ids, others: Ids | None, clean: Clean) -> Values:
        """Logit - logsumexp."""
        return _at(logits, answers) - logits.logsumexp(-1)


@dataclass(frozen=True)
class Logit:
    """The answer's logit. Blind to a shift of all logits, which means nothing to the model's answer."""

    name: MetricName = "logit"
    sense: Sense = 1

    def of(self, logits: Logits, answers: Ids, others: Ids | None, clean: Clean) -> Values:
        """The answer's logit."""
        return _at(logits, answers)


@dataclass(frozen=True)
class LogitDifference:
    """The answer's logit less that of an alternative answer: log of their odds."""

    name: MetricName = "logit_difference"
    sense: Sense = 1

    def of(self, logits: Logits, answers: Ids, others: Ids | None, clean: Clean) -> Values:
        """The answer's logit less the other's."""
        if others is None:
            raise SiteError('metric="logit_difference" needs an alternative answer: write other=" London".')
        return _at(logits, answers) - _at(logits, others)


@dataclass(frozen=True)
class KL:
    """KL(clean || run) over the whole vocabulary: 0 where the run answers as the clean one does."""

    name: MetricName = "kl"
    sense: Sense = -1

    def of(self, logits: Logits, answers: Ids, others: Ids | None, clean: Clean) -> Values:
        """The divergence from the clean run, in nats."""
        reference = clean.log_softmax(-1)
        return (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1)


@dataclass(frozen=True)
class Rank:
    """How many tokens are likelier than the answer: 0 for the model's prediction."""

    name: MetricName = "rank"
    sense: Sense = -1

    def of(self, logits: Logits, answers: Ids, others: Ids | None, clean: Clean) -> Values:
        """The answer's rank."""
        return (logits > _at(logits, answers)[..., None]).sum(-1).to(logits.dtype)


METRICS: dict[str, Metric] = {
    m.name: m for m in (Probability(), LogProbability(), Logit(), LogitDifference(), KL(), Rank())
}


def metric_named(name: str) -> Metric:
    """The metric of that name.

    Raises:
        SiteError: there is none.
    """
    if name not in METRICS:
        raise SiteError(f"There is no metric {name!r}. Choose from {', '.join(get_args(MetricName))}.")
    return METRICS[name]


def _at(logits: Logits, ids: Ids) -> Values:
    return logits.gather(-1, ids[..., None])[..., 0]
