"""Average causal effects over many facts, by the role of the token (Meng et al. 2022, fig. 2)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tracer.anatomy import SubLayer
from tracer.causal_trace import EngineName, check_settings, noise_for, predicted_id, trace
from tracer.corrupt import GaussianNoise
from tracer.effect import AverageTrace, TraceResult
from tracer.errors import FactError, FileFormatError
from tracer.fact import Fact, TokenizedFact, check_roles, token_roles
from tracer.model import LanguageModel
from tracer.progress import bar
from tracer.site import KINDS, Kind
from tracer.storage import plain
from tracer.tokens import visible


def average(
    model: LanguageModel,
    facts: Sequence[Fact],
    *,
    kinds: Sequence[Kind] = KINDS,
    severed: Sequence[SubLayer] = (),
    window: int = 10,
    samples: int = 10,
    seed: int = 1,
    noise: GaussianNoise | None = None,
    roles: Sequence[str] | None = None,
    known_only: bool = True,
    most: int | None = None,
    engine: EngineName = "sweep",
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> AverageTrace:
    """Traces facts and averages their effects by role and layer.

    Args:
        model: from `tracer.load`.
        facts: at least one; sigma is measured over their subjects unless `noise` gives it.
        kinds: as in `tracer.trace`, as are severed, window, samples, seed, noise, roles and engine.
        severed: see there.
        window: see there.
        samples: see there.
        seed: see there.
        noise: see there.
        roles: see there.
        known_only: leave out facts whose answer is not the model's own prediction; they are listed in
            `skipped`. A fact without an answer is always known.
        most: stop after this many facts were traced.
        engine: see `tracer.trace`.
        folder: keep each fact's trace there; facts already there are not traced again.
        progress: show a bar; None: in a terminal or notebook.

    Raises:
        FactError: no facts, or none that the model predicts.
    """
    check_settings(kinds, severed, window, samples, engine)
    check_roles(roles or ())
    facts = list(facts)
    if not facts or (most is not None and most < 1):
        raise FactError("No facts to average. Try tracer.facts.bundled(), and most=1 or more.")
    noise = noise_for(model, noise, [fact.subject for fact in facts])
    wanted = len(facts) if most is None else min(most, len(facts))
    results: list[TraceResult] = []
    skipped: list[tuple[str, str]] = []
    with bar(wanted, "tracing facts", show=progress, unit="fact") as steps:
        for fact in facts:
            if len(results) == wanted:
                break
            tokenized, reason = _usable(model, fact, roles, known_only)
            if tokenized is None:
                skipped.append((fact.prompt, reason))
                continue
            steps.set_postfix_str(fact.subject[:24])
            options = {
                "kinds": tuple(kinds),
                "severed": tuple(severed),
                "window": window,
                "samples": samples,
                "seed": seed,
                "noise": noise,
                "roles": None if roles is None else tuple(roles),
                "engine": engine,
            }
            results.append(_kept_trace(model, tokenized, folder, options))
            steps.update()
    if not results:
        raise FactError(
            f"The model predicts none of these {len(facts)} facts, e.g. {skipped[0][0]!r}: {skipped[0][1]}. "
            f"Give facts it knows, or known_only=False."
        )
    return average_of(results, skipped)


def average_of(results: Sequence[TraceResult], skipped: Sequence[tuple[str, str]] = ()) -> AverageTrace:
    """Averages traces made with the same settings.

    Raises:
        FactError: the traces were made with different settings.
    """
    if not results:
        raise FactError("No traces to average.")
    first = results[0]
    for result in results:
        if result.settings != first.settings or set(result.restored) != set(first.restored):
            raise FactError("These traces were made with different models, noise, windows or maps; average alike ones.")
    return AverageTrace(
        prompts=tuple(result.fact.fact.prompt if result.fact.fact else "".join(result.tokens) for result in results),
        skipped=tuple(skipped),
        clean=np.array([result.clean for result in results]),
        corrupted=np.array([result.corrupted for result in results]),
        effects={kind: np.stack([result.by_role(kind) for result in results]) for kind in first.restored},
        settings=first.settings,
    )


def _usable(
    model: LanguageModel, fact: Fact, roles: Sequence[str] | None, known_only: bool
) -> tuple[TokenizedFact | None, str]:
    """The fact as tokens, or None and why it is left out."""
    try:
        tokenized = fact.preflight(model, warn=False)
    except FactError as error:
        return None, str(error)
    present = set(token_roles(len(tokenized.token_ids), tokenized.subject_span))
    if roles and not present & set(roles):
        return None, f"it has no {' or '.join(roles)}"
    if not known_only or tokenized.answer_id is None:
        return tokenized, ""
    predicted = predicted_id(model, tokenized.token_ids)
    if predicted == tokenized.answer_id:
        return tokenized, ""
    said = visible(model.tokenizer, (predicted,))[0]
    return None, f"the model predicts {said!r}, not {tokenized.answer_tokens[0]!r}"


def _kept_trace(model: LanguageModel, fact: TokenizedFact, folder: str | Path | None, options: dict) -> TraceResult:
    """The fact's trace, from `folder` if it was made there with the same model and settings."""
    if folder is None:
        return trace(model, fact, progress=False, **options)
    noise = dataclasses.asdict(options["noise"])
    about = [model.fingerprint(), fact.token_ids, fact.subject_span, fact.answer_ids, {**options, "noise": noise}]
    path = Path(folder) / f"{hashlib.sha256(json.dumps(about, default=plain).encode()).hexdigest()[:24]}.safetensors"
    with contextlib.suppress(FileFormatError):  # absent, or of an older version: trace again
        return TraceResult.load(path)
    result = trace(model, fact, progress=False, **options)
    result.save(path)
    return result
