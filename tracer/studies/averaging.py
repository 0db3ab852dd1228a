"""Average causal effects over many facts, by the role of the token (Meng et al. 2022, fig. 2)."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tracer.anatomy import SubLayer
from tracer.answer import predicted_ids
from tracer.causal_trace import at_once, shape
from tracer.corrupt import Corruption, measured_corruption
from tracer.effect import AverageTrace, TraceResult
from tracer.engine import EngineName
from tracer.errors import FactError, FileFormatError, SiteError
from tracer.fact import Fact, TokenizedFact, token_roles
from tracer.groups import Group
from tracer.model import LanguageModel, check_opened
from tracer.model.ranks import folder_here
from tracer.model.tokens import visible
from tracer.plan import Plan
from tracer.progress import bar
from tracer.severed import Severed
from tracer.site import KINDS, Direction, Kind
from tracer.storage import plain
from tracer.studies.batches import trace_batch

_PREDICTS = "the model predicts"  # how the reason begins for which `known_only` leaves a fact out


def average(
    model: LanguageModel,
    facts: Sequence[Fact],
    *,
    kinds: Sequence[Kind] = KINDS,
    severed: Sequence[SubLayer | Severed] = (),
    groups: Sequence[Group] = (),
    window: int = 10,
    samples: int = 10,
    seed: int = 1,
    corruption: Corruption | str | None = None,
    roles: Sequence[str] | None = None,
    known_only: bool = True,
    most: int | None = None,
    engine: EngineName = "sweep",
    published_draws: bool = False,
    max_bytes: int | None = None,
    metric: str = "probability",
    direction: Direction = "restore",
    whole_answer: bool = False,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> AverageTrace:
    """Traces facts and averages their effects by role and layer.

    Args:
        model: from `tracer.load`.
        facts: at least one; what the corruption needs (sigma, say) is measured over them unless it is given.
        kinds: maps of restored states, MLP outputs and attention outputs; this and the options of a single fact
            are told at length in `tracer.trace`.
        severed: sub-layers held at corrupted values, each a map of its own.
        groups: tokens that are also restored together.
        window: layers restored together around each MLP or attention.
        samples: noise draws of each fact.
        seed: of the draws.
        corruption: what corrupts the subject, or its name; default `GaussianNoise(3)`, measured over `facts`.
        roles: trace tokens of these roles only; default: all.
        known_only: leave out facts whose answer is not the model's own prediction; they are listed in
            `skipped`, as are those that cannot be traced. A fact without an answer is always known.
        most: stop after this many facts were traced.
        engine: "sweep", or "passes" for the definition.
        published_draws: draw as the published severed trace does; only to reproduce its numbers.
        max_bytes: for the states that the sweep holds at once; default 1 GiB.
        metric: what is read off the last position, "probability" unless told.
        direction: "restore" (denoising) or "corrupt" (noising).
        whole_answer: trace all of the answer's tokens; a fact is then known if the model predicts every one of them.
        folder: keep each fact's trace there; facts already there are not traced again.
        progress: show a bar; None: in a terminal or notebook.

    Raises:
        FactError: no facts, or none that the model predicts and the corruption and metric can be taken of.
    """
    check_opened(model)
    if isinstance(facts, Fact):
        raise FactError("facts is a sequence: write tracer.average(model, [fact]), or tracer.trace(model, fact).")
    facts = list(facts)
    if not facts or (most is not None and most < 1):
        raise FactError("No facts to average. Try tracer.facts.bundled(), and most=1 or more.")
    plan = Plan(
        kinds=kinds,
        severed=severed,
        groups=groups,
        window=window,
        samples=samples,
        seed=seed,
        corruption=measured_corruption(model, corruption, facts),
        roles=roles,
        engine=engine,
        published_draws=published_draws,
        max_bytes=max_bytes,
        metric=metric,
        direction=direction,
        whole_answer=whole_answer,
    )
    model.torch.eval()  # dropout would make every pass another one
    wanted = len(facts) if most is None else min(most, len(facts))
    with bar(wanted, "tracing facts", show=progress, unit="fact") as steps:
        traces = _Traces(model, plan, folder, steps)
        skipped = traces.of(facts, wanted, known_only=known_only)
    if not traces.n:
        raise FactError(why_none(skipped))
    return average_of(traces.finish(), skipped)


def average_of(results: Iterable[TraceResult], skipped: Sequence[tuple[str, str]] = ()) -> AverageTrace:
    """Averages traces made with the same settings.

    Raises:
        FactError: the traces were made with different settings.
    """
    results = list(results)
    if not results or not all(isinstance(result, TraceResult) for result in results):
        raise FactError("Give results of tracer.trace to average; of a study: study.average.")
    first = results[0]
    for result in results:
        alike = result.settings == first.settings and result.groups == first.groups
        if not alike or set(result.restored) != set(first.restored):
            raise FactError("These traces were made with different models, noise, windows or maps; average alike ones.")
    return AverageTrace(
        prompts=tuple(result.fact.text for result in results),
        skipped=tuple(skipped),
        clean=np.array([result.clean for result in results]),
        corrupted=np.array([result.corrupted for result in results]),
        effects={kind: np.stack([result.by_role(kind) for result in results]) for kind in first.restored},
        settings=first.settings,
        groups=first.groups,
        grouped={name: np.stack([result.group_effect[name] for result in results]) for name in first.grouped},
    )


def usable(model: LanguageModel, fact: Fact, plan: Plan, known_only: bool) -> tuple[TokenizedFact | None, str]:
    """The fact as tokens, or None and why an average leaves it out."""
    try:
        tokenized = fact.preflight(model, warn=False)
        plan.check_fits(tokenized)
        model.check_length(len(tokenized.token_ids) + plan.answer_length(tokenized) - 1)
    except (FactError, SiteError) as error:
        return None, str(error)
    present = set(token_roles(len(tokenized.token_ids), tokenized.subject_span))
    if plan.roles and not present & set(plan.roles):
        return None, f"it has no {' or '.join(plan.roles)}"
    if not known_only or tokenized.answer_id is None:
        return tokenized, ""
    wanted = tokenized.answer_ids[: plan.answer_length(tokenized)]
    read = (*tokenized.token_ids, *wanted[:-1])
    predicted = predicted_ids(model, read, len(wanted), n_encoder=tokenized.n_encoder)
    if predicted == wanted:
        return tokenized, ""
    said, meant = ("".join(visible(model.tokenizer, ids)) for ids in (predicted, wanted))
    return None, f"{_PREDICTS} {said!r}, not {meant!r}"


def why_none(skipped: Sequence[tuple[str, str]]) -> str:
    """Why no fact was traced, and what to do about it; `skipped` are prompts and reasons."""
    if not skipped:
        return "None was reached yet: run it again."
    unknown = [(prompt, reason) for prompt, reason in skipped if reason.startswith(_PREDICTS)]
    prompt, reason = (unknown or list(skipped))[0]
    said = f"{len(skipped)} facts were left out, e.g. {prompt!r}: {reason.rstrip('.')}."
    if unknown:
        return f"{said} Give facts the model knows, or known_only=False (tracer study --all-facts)."
    return f"{said} Give other facts, or ask for what these have."


class _Traces:
    """Traces of facts in the order in which they came; alike ones wait for each other and are traced together.

    Attributes:
        n: facts that were traced or wait for it.
    """

    def __init__(self, model: LanguageModel, plan: Plan, folder: str | Path | None, steps: Any) -> None:
        self.model, self.plan, self.steps = model, plan, steps
        self.folder = None if folder is None else folder_here(model, folder)
        self.fingerprint = model.fingerprint()
        self.n = 0
        self._taken = 0
        self._failed: list[tuple[str, str]] = []
        self._done: dict[int, TraceResult] = {}
        self._waiting: dict[object, list[tuple[int, TokenizedFact]]] = {}

    def of(self, facts: Sequence[Fact], wanted: int, *, known_only: bool) -> list[tuple[str, str]]:
        """Traces the first `wanted` facts that can be; returns the others on the way, and why they were left out."""
        skipped: list[tuple[str, str]] = []
        for fact in facts:
            if self.n == wanted:
                self.finish()  # a fact that fails makes room for another
            if self.n == wanted:
                break
            tokenized, reason = usable(self.model, fact, self.plan, known_only)
            if tokenized is None:
                skipped.append((fact.prompt, reason))
            else:
                self.add(tokenized)
        self.finish()
        return skipped + self._failed

    def add(self, fact: TokenizedFact) -> None:
        """Takes the fact's trace from the folder, or has it traced as soon as there are enough like it."""
        number, self.n, self._taken = self._taken, self.n + 1, self._taken + 1
        path = self._path(fact)
        if path is not None:
            with contextlib.suppress(FileFormatError):  # absent, or of an older version: traced again
                self._done[number] = TraceResult.load(path)
                self.steps.update()
                return
        alike = self._waiting.setdefault(shape(fact, self.plan), [])
        alike.append((number, fact))
        if len(alike) >= at_once(self.model, fact, self.plan):
            self._trace(self._waiting.pop(shape(fact, self.plan)))

    def finish(self) -> list[TraceResult]:
        """Traces those that still wait; returns all."""
        for alike in self._waiting.values():
            self._trace(alike)
        self._waiting = {}
        return [self._done[number] for number in sorted(self._done)]

    def _trace(self, alike: list[tuple[int, TokenizedFact]]) -> None:
        subjects = [fact.fact.subject for _, fact in alike if fact.fact]
        self.steps.set_postfix_str(", ".join(subjects)[:24])
        results = trace_batch(self.model, [fact for _, fact in alike], self.plan, failures=(FactError, SiteError))
        for (number, fact), result in zip(alike, results, strict=True):
            if isinstance(result, str):
                self.n -= 1
                self._failed.append((fact.text, result))
                continue
            path = self._path(fact)
            if path is not None:
                result.save(path)
            self._done[number] = result
            self.steps.update()

    def _path(self, fact: TokenizedFact) -> Path | None:
        """Named by the model, the fact and everything that a number depends on."""
        if self.folder is None:
            return None
        # A folder never mixes engines: where the sweep was found at fault, the definition is what runs.
        settings = {**self.plan.record(), "engine": self.plan.engine_for(self.model)}
        about = [self.fingerprint, fact.token_ids, fact.subject_span, fact.answer_ids, fact.other_ids, settings]
        digest = hashlib.sha256(json.dumps(about, default=plain).encode()).hexdigest()
        return self.folder / f"{digest[:24]}.safetensors"
