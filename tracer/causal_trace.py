"""Causal tracing of one fact: clean, corrupted and restored runs, and the effects between them.

`trace` settles everything before the model runs (tokens, corruption, answer), then asks an engine for
the maps: the fast exact sweep, or the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tracer.anatomy import SubLayer
from tracer.corrupt import Corruption, measured_corruption
from tracer.effect import TraceResult
from tracer.engine import EngineName
from tracer.errors import FactError
from tracer.fact import Fact, TokenizedFact
from tracer.groups import Group, group_name
from tracer.model import LanguageModel
from tracer.model.tokens import visible
from tracer.plan import Plan
from tracer.progress import bar
from tracer.runs import Runs, check_ids, settings_of, settled, traced_tokens
from tracer.severed import Severed
from tracer.site import KINDS, Direction, Kind
from tracer.sweep.budget import Budget


def trace(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    *,
    kinds: Sequence[Kind] = KINDS,
    severed: Sequence[SubLayer | Severed] = (),
    groups: Sequence[Group] = (),
    window: int = 10,
    samples: int = 10,
    seed: int = 1,
    corruption: Corruption | str | None = None,
    roles: Sequence[str] | None = None,
    engine: EngineName = "sweep",
    published_draws: bool = False,
    max_bytes: int | None = None,
    metric: str = "probability",
    direction: Direction = "restore",
    whole_answer: bool = False,
    progress: bool | None = None,
) -> TraceResult:
    """Traces one fact through every layer and token of `model`.

    Args:
        model: from `tracer.load`.
        fact: the prompt; its answer is what the model predicts unless the fact names one.
        kinds: maps of restored states, MLP outputs and attention outputs; of an encoder-decoder also "cross",
            the outputs of its decoder's attention to the encoder.
        severed: maps of restored states with these sub-layers of the token held at corrupted values; in
            some layers only, or at other tokens: `Severed("mlp", layers=range(3, 8), tokens="last token")`.
        groups: also restore these tokens together, in every map: "subject" (all its tokens), a role, or
            positions such as (3, 5). They come as `TraceResult.grouped`.
        window: layers restored together around each MLP or attention (the paper uses 10 of GPT-2 XL's 48).
        samples: noise draws; all runs of a fact share them.
        seed: of the draws.
        corruption: what corrupts the subject (`tracer.corrupt`), or its name there, such as "replace"; default
            `GaussianNoise(3)`. What it needs (sigma, say) is measured over the bundled facts.
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
        whole_answer: trace the joint (log-)probability of all the answer's tokens, each after those before
            it; else the first token alone.
        progress: show a bar; None: in a terminal or notebook.

    Returns:
        The effects, differences of the metric.

    Raises:
        FactError, SiteError: input that cannot be traced, before the model runs.
        NumericsError: NaN or infinite logits.
    """
    plan = Plan(
        kinds=kinds,
        severed=severed,
        groups=groups,
        window=window,
        samples=samples,
        seed=seed,
        corruption=corruption,
        roles=roles,
        engine=engine,
        published_draws=published_draws,
        max_bytes=max_bytes,
        metric=metric,
        direction=direction,
        whole_answer=whole_answer,
    )
    tokenized = settled(model, fact, plan)
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
    if len({shape(fact, plan) for fact in facts}) != 1:
        raise FactError("Only facts of one length whose subjects are the same tokens can be traced together.")
    corruption = measured_corruption(model, plan.corruption)
    runs = Runs(model, facts, corruption, plan)
    restored: dict[str, np.ndarray] = {}
    grouped: dict[str, np.ndarray] = {}
    for name, by_token, by_group in runs.maps():
        restored[name], grouped[name] = by_token, by_group
        each_map(name)
    clean, corrupted = runs.unrestored()
    settings = settings_of(model, plan, corruption, runs.engine)
    return [
        TraceResult(
            fact=fact,
            answer_id=runs.answer_ids[number][0],
            answer="".join(visible(model.tokenizer, runs.answer_ids[number])),
            clean=float(clean[number]),
            corrupted_samples=corrupted[number],
            restored={name: of_facts[number] for name, of_facts in restored.items()},
            settings=settings,
            groups=tuple(map(group_name, plan.groups)),
            grouped={name: of_facts[number] for name, of_facts in grouped.items()} if plan.groups else {},
        )
        for number, fact in enumerate(facts)
    ]


def shape(fact: TokenizedFact, plan: Plan) -> tuple[int, tuple[int, int], int, int]:
    """Facts with the same one can be traced together.

    It holds the tokens of the prompt, those of the subject, how many the answer has, and how many an encoder reads.
    """
    return len(fact.token_ids), fact.subject_span, plan.answer_length(fact), fact.n_encoder


def at_once(model: LanguageModel, fact: TokenizedFact, plan: Plan) -> int:
    """How many facts like this one to trace together: enough that their first row alone makes a good matrix product."""
    if plan.engine_for(model) == "passes":
        return 1
    length, (first, _), answer_length, _ = shape(fact, plan)
    pairs = sum(length + answer_length - 1 - token for token in traced_tokens(fact, plan.roles) if token >= first)
    return max(1, Budget.of(model.device).packed_tokens // max(1, plan.samples * pairs))


def _label(fact: TokenizedFact) -> str:
    return repr(fact.fact.subject) if fact.fact else "prompt"
