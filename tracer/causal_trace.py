"""Causal tracing of one fact: clean, corrupted and restored runs, and the effects between them.

`trace` settles everything before the model runs (tokens, noise, answer), then asks an engine for
the maps: the fast exact sweep, or the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from tracer.anatomy import SubLayer
from tracer.corrupt import Corruption, GaussianNoise
from tracer.effect import Settings, TraceResult
from tracer.errors import FactError, SiteError
from tracer.fact import Fact, TokenizedFact, check_roles, token_roles
from tracer.metric import metric_named, wide
from tracer.model import LanguageModel
from tracer.passes import BatchPasses
from tracer.progress import bar
from tracer.site import KINDS, Direction, Kind, Unit, check_kinds, severed_name
from tracer.sweep import BatchSweep, Budget
from tracer.tokens import visible

EngineName = Literal["sweep", "passes"]


class Engine(Protocol):
    """What computes the maps of facts that are alike: `tracer.sweep.BatchSweep` or `tracer.passes.BatchPasses`."""

    @property
    def clean_logits(self) -> Tensor:
        """Last-position logits of the clean runs, [fact, vocab]."""
        ...

    @property
    def corrupted_logits(self) -> Tensor:
        """Last-position logits of the corrupted runs, [fact * sample, vocab]."""
        ...

    def state_maps(self, answer_ids: Sequence[int], tokens: list[int]) -> Tensor:
        """The metric with each state restored, [fact, token, layer, sample]."""
        ...

    def window_maps(self, kind: SubLayer, answer_ids: Sequence[int], tokens: list[int], window: int) -> Tensor:
        """The metric with each window of sub-layers restored, [fact, token, layer, sample]."""
        ...

    def severed_maps(self, path: SubLayer, answer_ids: Sequence[int], tokens: list[int]) -> Tensor:
        """The metric with each state restored and `path` held corrupted, [fact, token, layer, sample]."""
        ...

    def unit_maps(self, units: Sequence[Unit], answer_ids: Sequence[int], tokens: list[int]) -> Tensor:
        """The metric with each head or neuron restored alone, [fact, token, unit, sample]."""
        ...


@dataclass(frozen=True)
class Plan:
    """What to trace and how, checked; the arguments of `trace`."""

    kinds: tuple[Kind, ...] = KINDS
    severed: tuple[SubLayer, ...] = ()
    window: int = 10
    samples: int = 10
    seed: int = 1
    noise: Corruption | None = None
    roles: tuple[str, ...] | None = None
    engine: EngineName = "sweep"
    published_draws: bool = False
    max_bytes: int | None = None
    metric: str = "probability"
    direction: Direction = "restore"

    def __post_init__(self) -> None:
        check_kinds(self.kinds, self.severed)
        check_roles(self.roles or ())
        if self.window < 1:
            raise SiteError(f"A window of {self.window} layers restores nothing. Write window=1 or more.")
        if self.samples < 1:
            raise SiteError(f"samples={self.samples} draws no noise. Write samples=10.")
        if self.engine not in ("sweep", "passes"):
            raise SiteError(f'There is no engine {self.engine!r}. Write engine="sweep" or engine="passes".')
        metric_named(self.metric)
        if self.direction not in get_args(Direction):
            raise SiteError(f'There is no direction {self.direction!r}. Write "restore" or "corrupt".')
        if self.published_draws and self.direction != "restore":
            raise SiteError('The published severed trace restores: write direction="restore" with published_draws.')
        if self.max_bytes is not None and self.max_bytes < 1:
            raise SiteError(f"max_bytes={self.max_bytes} holds nothing. Write max_bytes=1 << 30, or None.")

    def record(self) -> dict[str, Any]:
        """Everything that a number depends on, for JSON."""
        skipped = ("noise", "max_bytes")
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in skipped}
        return {**plain, "noise": None if self.noise is None else self.noise.label()}

    @property
    def names(self) -> list[str]:
        """Of the maps."""
        return [*self.kinds, *map(severed_name, self.severed)]


def trace(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    *,
    kinds: Sequence[Kind] = KINDS,
    severed: Sequence[SubLayer] = (),
    window: int = 10,
    samples: int = 10,
    seed: int = 1,
    noise: Corruption | None = None,
    roles: Sequence[str] | None = None,
    engine: EngineName = "sweep",
    published_draws: bool = False,
    max_bytes: int | None = None,
    metric: str = "probability",
    direction: Direction = "restore",
    progress: bool | None = None,
) -> TraceResult:
    """Traces one fact through every layer and token of `model`.

    Args:
        model: from `tracer.load`.
        fact: the prompt; its answer is what the model predicts unless the fact names one.
        kinds: maps of restored states, MLP outputs and attention outputs.
        severed: maps of restored states with these sub-layers of the token held at corrupted values.
        window: layers restored together around each MLP or attention (the paper uses 10 of GPT-2 XL's 48).
        samples: noise draws; all runs of a fact share them.
        seed: of the draws.
        noise: what corrupts the subject (`tracer.corrupt`); default `GaussianNoise(3)`, its sigma
            measured over the subjects of the bundled facts.
        roles: trace tokens of these roles only; the other cells are NaN. Default: all tokens.
        engine: "sweep", or "passes" for the definition.
        published_draws: hold severed sub-layers at values of other draws than the run they are put into,
            as the published severed trace does; only to reproduce its numbers.
        max_bytes: for the states that the sweep holds at once; default 1 GiB. It halves this by itself
            when memory runs out; results do not depend on it.
        metric: what is read off the last position: "probability", "log_probability", "logit",
            "logit_difference" (to `Fact.other`), "kl" (to the clean run) or "rank".
        direction: "restore" puts clean values into corrupted runs (denoising); "corrupt" puts corrupted
            values into clean runs (noising): IE is then what the clean run loses.
        progress: show a bar; None: in a terminal or notebook.

    Returns:
        The effects, differences of the metric.

    Raises:
        FactError, SiteError: input that cannot be traced, before the model runs.
        NumericsError: NaN or infinite logits.
    """
    plan = Plan(
        tuple(kinds),
        tuple(severed),
        window,
        samples,
        seed,
        noise,
        None if roles is None else tuple(roles),
        engine,
        published_draws,
        max_bytes,
        metric,
        direction,
    )
    model.torch.eval()  # dropout would make every pass another one
    tokenized = fact.preflight(model) if isinstance(fact, Fact) else fact
    with bar(len(plan.names), f"tracing {_label(tokenized)}", show=progress, unit="map") as steps:

        def step(name: str) -> None:
            steps.set_postfix_str(name)
            steps.update()

        return trace_alike(model, [tokenized], plan, step)[0]


def trace_alike(
    model: LanguageModel,
    facts: Sequence[TokenizedFact],
    plan: Plan,
    each_map: Callable[[str], object] = lambda name: None,
) -> list[TraceResult]:
    """Traces facts that `shape` says are alike, together: one walk up the layers serves all of them."""
    for fact in facts:
        check_ids(model, fact)
    if len({shape(fact) for fact in facts}) != 1:
        raise FactError("Only facts of one length whose subjects are the same tokens can be traced together.")
    noise = noise_for(model, plan.noise)
    runs = Runs(model, facts, noise, plan)
    tokens = traced_tokens(facts[0], plan.roles)
    restored: dict[str, np.ndarray] = {}
    for kind in plan.kinds:
        restored[kind] = on_all_tokens(runs.map(kind), tokens, len(facts[0].token_ids))
        each_map(kind)
    for path in plan.severed:
        restored[severed_name(path)] = on_all_tokens(runs.severed_map(path), tokens, len(facts[0].token_ids))
        each_map(severed_name(path))
    corrupted, clean = runs.measured(runs.main.corrupted_logits), runs.measured(runs.main.clean_logits)
    settings = settings_of(model, plan, noise, runs.engine)
    return [
        TraceResult(
            fact=fact,
            answer_id=int(runs.answers[number]),
            answer=visible(model.tokenizer, (int(runs.answers[number]),))[0],
            clean=float(clean[number]),
            corrupted_samples=corrupted.unflatten(0, (len(facts), -1))[number].double().cpu().numpy(),
            restored={name: of_facts[number] for name, of_facts in restored.items()},
            settings=settings,
        )
        for number, fact in enumerate(facts)
    ]


def settings_of(model: LanguageModel, plan: Plan, noise: Corruption, engine: str) -> Settings:
    """What the plan's results say of how they were made."""
    return Settings(
        model=model.name,
        fingerprint=model.fingerprint(),
        window=plan.window,
        samples=plan.samples,
        seed=plan.seed,
        corruption=noise.label(),
        engine=engine,
        published_draws=plan.published_draws,
        metric=plan.metric,
        direction=plan.direction,
    )


def shape(fact: TokenizedFact) -> tuple[int, tuple[int, int]]:
    """Facts with the same one can be traced together: how many tokens, and which are the subject."""
    return len(fact.token_ids), fact.subject_span


def at_once(model: LanguageModel, fact: TokenizedFact, plan: Plan) -> int:
    """How many facts like this one to trace together: enough that their first row alone makes a good matrix product."""
    if plan.engine == "passes" or model.sweep_fault:
        return 1
    length, (first, _) = shape(fact)
    pairs = sum(length - token for token in traced_tokens(fact, plan.roles) if token >= first)
    return max(1, Budget.of(model.device).packed_tokens // max(1, plan.samples * pairs))


class Runs:
    """The engines of some facts, with their clean and corrupted runs done and found finite.

    Attributes:
        engine: the one that is used: the definition where the sweep was found at fault.
        answers: the token traced for each fact, [fact].
        main: computes every map; severed ones too, unless `published_draws` asks for other draws there.
    """

    def __init__(self, model: LanguageModel, facts: Sequence[TokenizedFact], noise: Corruption, plan: Plan) -> None:
        self.plan, self.engine = plan, "passes" if model.sweep_fault else plan.engine
        self.tokens = traced_tokens(facts[0], plan.roles)
        self.others = None
        if plan.metric == "logit_difference":
            self.others = [_other_id(fact) for fact in facts]
        draws = noise.drawn(model, facts, 2 * plan.samples if plan.published_draws else plan.samples, plan.seed)
        ids = torch.tensor([fact.token_ids for fact in facts], device=model.device)
        first, second = draws.of_samples(slice(plan.samples)), draws.of_samples(slice(plan.samples, None))
        span = facts[0].subject_span
        self.main = self._engine(model, ids, span, first)
        self.severing = self.main
        if plan.published_draws and plan.severed:
            self.severing = self._engine(model, ids, span, second, frozen_noise=first)
        model.check_finite(self.main.clean_logits)
        model.check_finite(self.main.corrupted_logits)
        predicted = self.main.clean_logits.argmax(-1)
        given = [-1 if fact.answer_id is None else fact.answer_id for fact in facts]
        wanted = torch.tensor(given, device=predicted.device)
        self.answers = torch.where(wanted < 0, predicted, wanted)
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
        """Restored probabilities, [fact, token, layer, sample]."""
        if kind == "state":
            return self.main.state_maps(self.answer_ids, self.tokens)
        return self.main.window_maps(kind, self.answer_ids, self.tokens, self.plan.window)

    def severed_map(self, path: SubLayer) -> Tensor:
        """Restored probabilities with `path` severed, [fact, token, layer, sample]."""
        return self.severing.severed_maps(path, self.answer_ids, self.tokens)


def check_ids(model: LanguageModel, fact: TokenizedFact) -> None:
    """Raises FactError for token ids that the model does not have."""
    model.check_length(len(fact.token_ids))
    size = int(model.torch.config.get_text_config().vocab_size)
    outside = [token for token in (*fact.token_ids, *fact.answer_ids) if not 0 <= token < size]
    if outside:
        raise FactError(f"Token id {outside[0]} is outside the model's vocabulary of {size}.")


def noise_for(model: LanguageModel, noise: Corruption | None, subjects: Sequence[str] | None = None) -> Corruption:
    """`noise` with what it needs measured over `subjects`, else over those of the bundled facts."""
    return (noise or GaussianNoise()).measured(model, subjects)


def predicted_id(model: LanguageModel, token_ids: Sequence[int]) -> int:
    """The token that the model finds most probable after these."""
    with torch.inference_mode():
        ids = torch.tensor([list(token_ids)], device=model.device)
        logits = model.torch(input_ids=ids, logits_to_keep=1).logits[0, -1]
    model.check_finite(logits)
    return int(logits.argmax())


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


def _other_id(fact: TokenizedFact) -> int:
    if not fact.other_ids:
        said = repr(fact.fact.prompt) if fact.fact else "This prompt"
        raise FactError(f'{said} has no alternative answer to compare with: write Fact(..., other=" London").')
    return fact.other_ids[0]


def _label(fact: TokenizedFact) -> str:
    return repr(fact.fact.subject) if fact.fact else "prompt"
