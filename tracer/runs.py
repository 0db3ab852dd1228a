"""Facts made ready to trace: tokens checked, draws made, engines run once, answers known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracer.anatomy import SubLayer
from tracer.answer import traced_answers
from tracer.budget import Budget
from tracer.corrupt import Corruption
from tracer.effect import Settings
from tracer.engine import Engine
from tracer.errors import FactError
from tracer.fact import Fact, TokenizedFact, token_roles
from tracer.metric import metric_named, wide
from tracer.model import LanguageModel
from tracer.passes import BatchPasses
from tracer.plan import Plan
from tracer.site import Kind
from tracer.sweep import BatchSweep


class Runs:
    """The engines of some facts, with their clean and corrupted runs done and found finite.

    Attributes:
        engine: the one that is used: the definition where the sweep was found at fault.
        answers: the token traced for each fact, [fact].
        main: computes every map; severed ones too, unless `published_draws` asks for other draws there.
    """

    def __init__(
        self, model: LanguageModel, facts: Sequence[TokenizedFact], corruption: Corruption, plan: Plan
    ) -> None:
        self.plan, self.engine = plan, plan.engine_for(model)
        self.tokens = traced_tokens(facts[0], plan.roles)
        self.others = [_other_id(fact) for fact in facts] if plan.metric == "logit_difference" else None
        draws = corruption.drawn(model, facts, 2 * plan.samples if plan.published_draws else plan.samples, plan.seed)
        ids = torch.tensor([fact.token_ids for fact in facts], device=model.device)
        first, second = draws.of_samples(slice(plan.samples)), draws.of_samples(slice(plan.samples, None))
        span = facts[0].subject_span
        self.main = self._engine(model, ids, span, first)
        self.severing = self.main
        if plan.published_draws and plan.severed:
            self.severing = self._engine(model, ids, span, second, frozen_noise=first)
        model.check_finite(self.main.clean_logits)
        model.check_finite(self.main.corrupted_logits)
        self.answers = traced_answers(facts, self.main.clean_logits)
        self.answer_ids: list[int] = self.answers.tolist()

    def _engine(self, model: LanguageModel, *run: Any, **frozen: Any) -> Engine:
        plan = self.plan
        options = {"metric": metric_named(plan.metric), "direction": plan.direction, "other_ids": self.others, **frozen}
        if self.engine == "passes":
            return BatchPasses(model, *run, **options)
        return BatchSweep(model, *run, **options, budget=Budget.of(model.device, plan.max_bytes))

    def measured(self, logits: Tensor) -> Tensor:
        """The metric from logits [fact, vocab], or [fact * sample, vocab]."""
        of = torch.arange(len(self.answers), device=logits.device).repeat_interleave(len(logits) // len(self.answers))
        others = None if self.others is None else torch.tensor(self.others, device=logits.device)[of]
        clean = wide(self.main.clean_logits)[of]
        return metric_named(self.plan.metric).of(wide(logits), self.answers[of], others, clean)

    def map(self, kind: Kind) -> Tensor:
        """The metric with each site restored, [fact, token, layer, sample]."""
        if kind == "state":
            return self.main.state_maps(self.answer_ids, self.tokens)
        return self.main.window_maps(kind, self.answer_ids, self.tokens, self.plan.window)

    def severed_map(self, path: SubLayer) -> Tensor:
        """The metric with each state restored and `path` severed, [fact, token, layer, sample]."""
        return self.severing.severed_maps(path, self.answer_ids, self.tokens)


def settled(model: LanguageModel, fact: Fact | TokenizedFact) -> TokenizedFact:
    """The fact as tokens, checked, and the model ready for it.

    Raises:
        FactError: a fact that cannot be traced.
    """
    model.torch.eval()  # dropout would make every pass another one
    tokenized = fact.preflight(model) if isinstance(fact, Fact) else fact
    check_ids(model, tokenized)
    return tokenized


def check_ids(model: LanguageModel, fact: TokenizedFact) -> None:
    """Raises FactError for token ids that the model does not have."""
    model.check_length(len(fact.token_ids))
    size = int(model.torch.config.get_text_config().vocab_size)
    outside = [token for token in (*fact.token_ids, *fact.answer_ids) if not 0 <= token < size]
    if outside:
        raise FactError(f"Token id {outside[0]} is outside the model's vocabulary of {size}.")


def traced_tokens(fact: TokenizedFact, roles: Sequence[str] | None) -> list[int]:
    """The positions to restore. Those before the subject cost nothing: their effect is 0."""
    found = token_roles(len(fact.token_ids), fact.subject_span)
    tokens = [n for n, role in enumerate(found) if not roles or role in roles]
    if not tokens:
        present = ", ".join(dict.fromkeys(role for role in found if role))
        raise FactError(f"No token of this prompt is a {' or '.join(roles or ())}. It has: {present}.")
    return tokens


def on_all_tokens(restored: Tensor, tokens: list[int], n_tokens: int) -> np.ndarray:
    """Values of the traced tokens [fact, traced, ...] as [fact, token, ...], NaN elsewhere."""
    values = np.full((len(restored), n_tokens, *restored.shape[2:]), np.nan)
    values[:, tokens] = restored.double().cpu().numpy()
    return values


def settings_of(model: LanguageModel, plan: Plan, corruption: Corruption, engine: str) -> Settings:
    """What the plan's results say of how they were made."""
    return Settings(
        model=model.name,
        fingerprint=model.fingerprint(),
        window=plan.window,
        samples=plan.samples,
        seed=plan.seed,
        corruption=corruption.label(),
        engine=engine,
        published_draws=plan.published_draws,
        metric=plan.metric,
        direction=plan.direction,
    )


def _other_id(fact: TokenizedFact) -> int:
    if not fact.other_ids:
        said = repr(fact.fact.prompt) if fact.fact else "This prompt"
        raise FactError(f'{said} has no alternative answer to compare with: write Fact(..., other=" London").')
    return fact.other_ids[0]
