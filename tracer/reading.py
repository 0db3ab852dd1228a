"""How an answer is read off the logits: one token, or several of which each follows those before it.

    log p(answer) = sum over k of log p(answer[k] | prompt, answer[:k])
The prompt is extended by all tokens of the answer but the last (teacher forcing), so that one pass
gives every term: that of token k stands at position T - 1 + k of a prompt of T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tracer.metric import METRICS, Metric
from tracer.precision import wide

AnswerIds = int | tuple[int, ...]  # a token, or all those of an answer
Answers = Sequence[AnswerIds]  # one a fact
JOINT = ("probability", "log_probability")  # metrics that the tokens of an answer share


@dataclass(frozen=True)
class Reading:
    """A metric of an answer of `length` tokens.

    Attributes:
        metric: of the whole answer.
    """

    metric: Metric
    length: int = 1

    @property
    def each(self) -> Metric:
        """What is read at each position."""
        return self.metric if self.length == 1 else METRICS["log_probability"]

    def joined(self, values: Float[Tensor, " position *rest"]) -> Float[Tensor, "*rest"]:
        """The metric from what was read at each position."""
        if self.length == 1:
            return values[0]
        total = values.sum(0)
        return total.exp() if self.metric.name == "probability" else total

    def at_each(
        self,
        logits: Float[Tensor, "row position vocab"],
        answers: Int[Tensor, "row position"],
        others: Int[Tensor, " row"] | None,
        clean: Float[Tensor, "row vocab"],
    ) -> Float[Tensor, "position row"]:
        """What is read at each position.

        Args:
            logits: where the answer's tokens are predicted.
            answers: token ids.
            others: of alternative answers.
            clean: logits of the clean run at the first position.
        """
        found = [
            self.each.of(wide(logits[:, at]), answers[:, at], others, wide(clean)) for at in range(logits.shape[1])
        ]
        return torch.stack(found)


def answer_table(answer_ids: Answers, device: torch.device) -> Int[Tensor, "fact position"]:
    """Answers of one length as token ids."""
    return torch.tensor([[a] if isinstance(a, int) else list(a) for a in answer_ids], device=device)
