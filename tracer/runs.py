"""Facts made ready to trace: tokens checked, draws made, engines run once, answers known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracer.answer import traced_answers
from tracer.corrupt import Corruption
from tracer.effect import Settings
from tracer.engine import Engine
from tracer.errors import FactError
from tracer.fact import Fact, TokenizedFact, token_roles
from tracer.groups import group_tokens
from tracer.metric import metric_named
from tracer.model import LanguageModel, check_opened
from tracer.passes import BatchPasses
from tracer.plan import Plan
from tracer.site import Tokens
from tracer.sweep import BatchSweep
from tracer.sweep.budget import Budget
from tracer.sweep.two_stacks import BatchTwoStackSweep


class Runs:
    """The engines of some facts, with their clean and corrupted runs done and found finite.

    Attributes:
        engine: the one that is used: the definition where the sweep was found at fault.
        answer_ids: the tokens traced for each fact, one or more.
        main: computes every map; severed ones too, unless `published_draws` asks for other draws there.
    """

    def __init__(
        self, model: LanguageModel, facts: Sequence[TokenizedFact], corruption: Corruption, plan: Plan
    ) -> None:
        self.plan, self.engine, self.fact = plan, plan.engine_for(model), facts[0]
        self.tokens = traced_tokens(facts[0], plan.roles)
        self.groups = [group_tokens(facts[0], group) for group in plan.groups]
        self.cuts = [cut.at(facts[0]) for cut in plan.cuts]
        for cut in self.cuts:
            cut.layers_in(model.n_layers)
        self.others = [other_id(fact) for fact in facts] if plan.metric == "logit_difference" else None
        self.length = plan.answer_length(facts[0])
        draws = corruption.drawn(model, facts, 2 * plan.samples if plan.published_draws else plan.samples, plan.seed)
        rows = [(*fact.token_ids, *fact.answer_ids[: self.length - 1]) for fact in facts]
        model.check_length(len(rows[0]))
        run = model, torch.tensor(rows, device=model.device), facts[0].subject_span
        first, second = draws.of_samples(slice(plan.samples)), draws.of_samples(slice(plan.samples, None))
        self.main = self._engine(*run, first)
        self.severing = self.main
        if plan.published_draws and plan.severed:
            self.severing = self._engine(*run, second, frozen_noise=first)
        model.check_finite(self.main.clean_logits)
        model.check_finite(self.main.corrupted_logits)
        answers = traced_answers(facts, self.main.clean_logits).tolist()
        self.answer_ids = [
            (answer, *fact.answer_ids[1 : self.length]) for answer, fact in zip(answers, facts, strict=True)
        ]

    def _engine(self, model: LanguageModel, *run: Any, **frozen: Any) -> Engine:
        plan = self.plan
        options = {"metric": metric_named(plan.metric), "direction": plan.direction, "other_ids": self.others}
        options |= {"answer_length": self.length, **frozen}
        if model.is_encoder_decoder:
            options["n_encoder"] = self.fact.n_encoder
        if self.engine == "passes":
            return BatchPasses(model, *run, **options)
        kind = BatchTwoStackSweep if model.is_encoder_decoder else BatchSweep
        return kind(model, *run, **options, budget=Budget.of(model.device, plan.max_bytes))

    def unrestored(self) -> tuple[np.ndarray, np.ndarray]:
        """The metric of the clean runs, [fact], and of the corrupted ones, [fact, sample]."""
        clean, corrupted = self.main.unrestored(self.answer_ids)
        return clean.double().cpu().numpy(), corrupted.double().cpu().numpy().reshape(len(clean), -1)

    def maps(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Every map of the plan: its name, the metric with a token restored, and with a group restored.

        They are [fact, token, layer, sample] and [fact, group, layer, sample]; NaN at tokens that are not
        traced, and for groups that the prompt has no token of.
        """
        places: list[Tokens] = [*self.tokens, *filter(None, self.groups)]
        for kind in self.plan.kinds:
            if kind == "state":
                yield kind, *self._apart(self.main.state_maps(self.answer_ids, places))
            else:
                found = self.main.window_maps(kind, self.answer_ids, places, self.plan.window)
                yield kind, *self._apart(found)
        for cut, at in zip(self.plan.cuts, self.cuts, strict=True):
            yield cut.name, *self._apart(self.severing.severed_maps(at, self.answer_ids, places))

    def _apart(self, found: Tensor) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.tokens)
        present = [number for number, group in enumerate(self.groups) if group]
        by_token = spread(found[:, :n], self.tokens, len(self.fact.token_ids))
        return by_token, spread(found[:, n:], present, len(self.groups))


def settled(model: LanguageModel, fact: Fact | TokenizedFact, plan: Plan) -> TokenizedFact:
    """The fact as tokens, checked, and the model ready for it.

    Raises:
        ModelSourceError: a model that was not opened.
        FactError: a fact that cannot be traced.
    """
    check_opened(model)
    if not isinstance(fact, Fact | TokenizedFact):
        raise FactError(f"{fact!r} is not a fact. Write tracer.Fact(prompt, subject=...).")
    model.torch.eval()  # dropout would make every pass another one
    model.warn_of_readers()
    tokenized = fact.preflight(model, whole_answer=plan.whole_answer) if isinstance(fact, Fact) else fact
    check_ids(model, tokenized)
    plan.check_cross_attention(model)
    return tokenized


def check_ids(model: LanguageModel, fact: TokenizedFact) -> None:
    """Raises FactError for token ids that the model does not have, or that the wrong stack would read."""
    if bool(fact.n_encoder) != model.is_encoder_decoder:
        has = "an encoder and a decoder" if model.is_encoder_decoder else "one stack of blocks"
        raise FactError(
            f"n_encoder={fact.n_encoder}, and {model.name} has {has}: n_encoder says how many of the tokens an encoder "
            f"reads. Write TokenizedFact(..., n_encoder=...), or tokenise the fact with this model: fact.preflight."
        )
    model.check_length(len(fact.token_ids))
    size = int(model.torch.config.get_text_config().vocab_size)
    outside = [token for token in (*fact.token_ids, *fact.answer_ids, *fact.other_ids) if not 0 <= token < size]
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


def spread(restored: Tensor, places: list[int], n: int) -> np.ndarray:
    """Values [fact, traced, ...] at these of `n` places of the second axis, [fact, place, ...]; NaN elsewhere."""
    values = np.full((len(restored), n, *restored.shape[2:]), np.nan)
    values[:, places] = restored.double().cpu().numpy()
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
        whole_answer=plan.whole_answer,
        encoder_layers=model.anatomy.n_encoder_layers,
    )


def other_id(fact: TokenizedFact) -> int:
    """The first token of the fact's alternative answer; FactError without one."""
    if not fact.other_ids:
        said = repr(fact.fact.prompt) if fact.fact else "This prompt"
        raise FactError(f'{said} has no alternative answer to compare with: write Fact(..., other=" London").')
    return fact.other_ids[0]
