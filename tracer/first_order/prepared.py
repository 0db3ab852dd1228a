"""One fact ready to be differentiated: its rows, its draws, and its gradient-carrying forward pass.

Row 0 is the clean prompt, the others are corrupted, a row for each draw: the same tokens and draws
as in `tracer.trace`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tracer.answer import probability, traced_answers
from tracer.corrupt import Corruption, Draws, measured_corruption
from tracer.effect import Settings, TraceResult
from tracer.fact import Fact, TokenizedFact
from tracer.model import LanguageModel
from tracer.model.tokens import visible
from tracer.plan import Plan
from tracer.runs import settings_of, settled
from tracer.sweep.hooks import output_changed


@dataclass(frozen=True, eq=False)
class Prepared:
    """A fact with its draws.

    Attributes:
        draws: what is done to the subject's embeddings in each sample.
        corruption: what they were drawn from, measured.
    """

    model: LanguageModel
    fact: TokenizedFact
    plan: Plan
    corruption: Corruption
    draws: Draws

    @property
    def ids(self) -> Tensor:
        """The prompt, [1, token]."""
        return torch.tensor([self.fact.token_ids], device=self.model.device)

    def corrupted(self, embedded: Tensor) -> Tensor:
        """Clean and corrupted embeddings: `embedded` [1 + sample, token, width], all rows but one corrupted."""
        begin, end = self.fact.subject_span
        embedded = embedded.clone()
        embedded[1:, begin:end] = self.draws.onto(embedded[None, 1:, begin:end])[0]
        return embedded

    def logits(self, embedded: Callable[[Tensor], Tensor], rows: int) -> Tensor:
        """Last-position logits [row, vocab] of the prompt in so many rows, its token embeddings changed.

        Raises:
            NumericsError: NaN or infinite logits.
        """
        with output_changed(self.model.anatomy.embedding, embedded):
            out = self.model.torch(input_ids=self.ids.expand(rows, -1), use_cache=False, logits_to_keep=1)
        self.model.check_finite(out.logits)
        return out.logits[:, -1]

    def answer_id(self, clean_logits: Tensor) -> int:
        """The token traced: the fact's answer, else what the clean run `clean_logits` [vocab] predicts."""
        return int(traced_answers([self.fact], clean_logits[None])[0])

    def settings(self, engine: str) -> Settings:
        """What the maps of this fact were made with."""
        return settings_of(self.model, self.plan, self.corruption, engine)

    def result(self, logits: Tensor, effects: dict[str, Tensor], engine: str) -> TraceResult:
        """Estimated `effects` [token, layer, sample], as a trace; `logits` [1 + sample, vocab]."""
        answer = self.answer_id(logits[0])
        found = probability(logits.detach(), answer).double().cpu().numpy()
        restored: dict[str, np.ndarray] = {}
        for kind, effect in effects.items():
            restored[kind] = found[1:] + effect.double().cpu().numpy()
        return TraceResult(
            fact=self.fact,
            answer_id=answer,
            answer=visible(self.model.tokenizer, (answer,))[0],
            clean=float(found[0]),
            corrupted_samples=found[1:],
            restored=restored,
            settings=self.settings(engine),
        )


def prepare(model: LanguageModel, fact: Fact | TokenizedFact, plan: Plan) -> Prepared:
    """Settles tokens and draws before the model runs.

    Raises:
        FactError: a fact that cannot be traced.
    """
    model.check_decoder_only("Attribution (attribute, attribute_edges, path_patch, attribute_queries_and_keys)")
    tokenized, corruption = settled(model, fact, plan), measured_corruption(model, plan.corruption)
    draws = corruption.drawn(model, [tokenized], plan.samples, plan.seed)
    return Prepared(model, tokenized, plan, corruption, draws)


@contextmanager
def differentiable() -> Iterator[None]:
    """Gradients are recorded, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
