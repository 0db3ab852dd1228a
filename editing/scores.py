"""Primitive scores of (prompt, target) pairs: the only functions of the evaluation that run the model.

nll       = -(1/T) sum_t log p(y_t | x, y_<t)      over the target's own tokens, teacher-forced
prob      = exp(-nll)                              a geometric mean over tokens, not the joint probability
tf_exact  = 1 if every y_t is the argmax           equals greedy decoding's first T tokens
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tracer.model import LanguageModel
from tracer.tokens import TargetEncoding, encode_with_target, right_padded

BATCH = 32


@dataclass(frozen=True)
class TargetScore:
    """How a model scores one target after one prompt.

    Attributes:
        nll: mean over the target's tokens.
        tf_exact: every target token is the most probable one, the tokens before it given.
    """

    nll: float
    tf_exact: bool

    @property
    def prob(self) -> float:
        """exp(-nll), the geometric mean of the token probabilities."""
        return math.exp(-self.nll)


def target_scores(model: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[TargetScore]:
    """Scores (prompt, target) pairs, in their order; one blank between them unless the target brings it.

    Raises:
        FactError: a target without tokens.
    """
    encodings = [encode_with_target(model.tokenizer, prompt, target) for prompt, target in pairs]
    model.check_length(max((len(encoding.ids) - 1 for encoding in encodings), default=0))
    order = sorted(range(len(pairs)), key=lambda n: len(encodings[n].ids))
    scores: dict[int, TargetScore] = {}
    for at in range(0, len(order), BATCH):
        chosen = order[at : at + BATCH]
        scores |= dict(zip(chosen, _batch_scores(model, [encodings[n] for n in chosen]), strict=True))
    return [scores[n] for n in range(len(pairs))]


@torch.inference_mode()
def _batch_scores(model: LanguageModel, encodings: Sequence[TargetEncoding]) -> list[TargetScore]:
    # The last target token is predicted, never read.
    ids, mask = right_padded([encoding.ids[:-1] for encoding in encodings], device=model.device)
    hidden = model.torch.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    scores = []
    for row, encoding in enumerate(encodings):
        # The base model's output is after the final norm: only the target's positions meet the head.
        logits = model.anatomy.logits(hidden[row, encoding.n_prompt - 1 : len(encoding.ids) - 1])
        model.check_finite(logits)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        targets = torch.tensor(encoding.target_ids, device=logits.device)
        nll = torch.nn.functional.cross_entropy(logits, targets)
        scores.append(TargetScore(float(nll), bool((logits.argmax(-1) == targets).all())))
    return scores
