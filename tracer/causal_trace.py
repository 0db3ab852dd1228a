"""Causal tracing of one fact: clean, corrupted and restored runs, and the effects between them.

`trace` settles everything before the model runs (tokens, noise, answer), then asks an engine for
the maps: the fast exact sweep, or the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from tracer.anatomy import SubLayer
from tracer.corrupt import GaussianNoise, embedding_sigma
from tracer.effect import Settings, TraceResult
from tracer.errors import FactError, SiteError
from tracer.fact import Fact, TokenizedFact, check_roles, token_roles
from tracer.facts import bundled
from tracer.model import LanguageModel
from tracer.passes import Passes, probability
from tracer.progress import bar
from tracer.site import KINDS, Kind, check_kinds, severed_name
from tracer.sweep import Sweep, self_test
from tracer.tokens import visible

EngineName = Literal["sweep", "passes"]


class Engine(Protocol):
    """What computes the maps of one prompt: `tracer.sweep.Sweep` or `tracer.passes.Passes`."""

    @property
    def clean_logits(self) -> Tensor:
        """Last-position logits of the clean run, [vocab]."""
        ...

    @property
    def corrupted_logits(self) -> Tensor:
        """Last-position logits of the corrupted runs, [sample, vocab]."""
        ...

    def state_map(self, answer_id: int, tokens: list[int]) -> Tensor:
        """p(answer) with each state restored, [token, layer, sample]."""
        ...

    def window_map(self, kind: SubLayer, answer_id: int, tokens: list[int], window: int) -> Tensor:
        """p(answer) with each window of sub-layers restored, [token, layer, sample]."""
        ...

    def severed_map(self, path: SubLayer, answer_id: int, tokens: list[int]) -> Tensor:
        """p(answer) with each state restored and `path` held corrupted, [token, layer, sample]."""
        ...


def trace(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    *,
    kinds: Sequence[Kind] = KINDS,
    severed: Sequence[SubLayer] = (),
    window: int = 10,
    samples: int = 10,
    seed: int = 1,
    noise: GaussianNoise | None = None,
    roles: Sequence[str] | None = None,
    engine: EngineName = "sweep",
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
        noise: default `GaussianNoise(3)`, sigma measured over the subjects of the bundled facts.
        roles: trace tokens of these roles only; the other cells are NaN. Default: all tokens.
        engine: "sweep", or "passes" for the definition.
        progress: show a bar; None: in a terminal or notebook.

    Returns:
        The effects, differences of probability.

    Raises:
        FactError, SiteError: input that cannot be traced, before the model runs.
        NumericsError: NaN or infinite logits.
        SweepMismatchError: the sweep's self-test failed on this model.
    """
    check_settings(kinds, severed, window, samples, engine)
    check_roles(roles or ())
    model.torch.eval()  # dropout would make every pass another one
    tokenized = fact.preflight(model) if isinstance(fact, Fact) else fact
    _check_ids(model, tokenized)
    noise = noise_for(model, noise)
    width = model.anatomy.embedding_size
    draws = noise.draws(samples=samples, n_subject=_length(tokenized), d_model=width, seed=seed)
    run = _engine(model, tokenized, draws, engine)
    answer_id = int(run.clean_logits.argmax()) if tokenized.answer_id is None else tokenized.answer_id
    tokens = _traced_tokens(tokenized, roles)
    maps: dict[str, Callable[[], Tensor]] = {kind: _map(run, kind, answer_id, tokens, window) for kind in kinds}
    for path in severed:
        maps[severed_name(path)] = lambda path=path: run.severed_map(path, answer_id, tokens)
    restored = {}
    with bar(len(maps), f"tracing {_label(tokenized)}", show=progress, unit="map") as steps:
        for name, compute in maps.items():
            steps.set_postfix_str(name)
            restored[name] = _on_all_tokens(compute(), tokens, len(tokenized.token_ids))
            steps.update()
    return TraceResult(
        fact=tokenized,
        answer_id=answer_id,
        answer=visible(model.tokenizer, (answer_id,))[0],
        clean=float(probability(run.clean_logits, answer_id)),
        corrupted_samples=probability(run.corrupted_logits, answer_id).double().cpu().numpy(),
        restored=restored,
        settings=Settings(
            model=model.name,
            fingerprint=model.fingerprint(),
            window=window,
            samples=samples,
            seed=seed,
            noise_scale=noise.scale,
            noise_sigma=float(noise.sigma or 0.0),
            engine=engine,
        ),
    )


def _check_ids(model: LanguageModel, fact: TokenizedFact) -> None:
    """Raises FactError for token ids that the model does not have."""
    model.check_length(len(fact.token_ids))
    size = int(model.torch.config.get_text_config().vocab_size)
    outside = [token for token in (*fact.token_ids, *fact.answer_ids) if not 0 <= token < size]
    if outside:
        raise FactError(f"Token id {outside[0]} is outside the model's vocabulary of {size}.")


def check_settings(kinds: Sequence[str], severed: Sequence[str], window: int, samples: int, engine: EngineName) -> None:
    """Raises SiteError for settings that no trace can be run with."""
    check_kinds(tuple(kinds), tuple(severed))
    if window < 1:
        raise SiteError(f"A window of {window} layers restores nothing. Write window=1 or more.")
    if samples < 1:
        raise SiteError(f"samples={samples} draws no noise. Write samples=10.")
    if engine not in ("sweep", "passes"):
        raise SiteError(f'There is no engine {engine!r}. Write engine="sweep" or engine="passes".')


def noise_for(
    model: LanguageModel, noise: GaussianNoise | None, subjects: Sequence[str] | None = None
) -> GaussianNoise:
    """`noise` with its sigma filled in: measured over `subjects`, else over those of the bundled facts."""
    noise = noise or GaussianNoise()
    if noise.sigma is not None:
        return noise
    known = [fact.subject for fact in bundled()] if subjects is None else subjects
    return GaussianNoise(noise.scale, embedding_sigma(model, known))


def predicted_id(model: LanguageModel, token_ids: Sequence[int]) -> int:
    """The token that the model finds most probable after these."""
    with torch.inference_mode():
        ids = torch.tensor([list(token_ids)], device=model.device)
        logits = model.torch(input_ids=ids, logits_to_keep=1).logits[0, -1]
    model.check_finite(logits)
    return int(logits.argmax())


def _engine(model: LanguageModel, fact: TokenizedFact, draws: Tensor, engine: EngineName) -> Engine:
    """The engine with its clean and corrupted runs done and found finite."""
    ids = torch.tensor([fact.token_ids], device=model.device)
    if engine == "sweep" and not model.sweep_checked:
        model.check_finite(model.torch(input_ids=ids, logits_to_keep=1).logits)
        self_test(model)
    run: Engine = (Sweep if engine == "sweep" else Passes)(model, ids, fact.subject_span, draws)
    model.check_finite(run.clean_logits)
    model.check_finite(run.corrupted_logits)
    return run


def _map(run: Engine, kind: Kind, answer_id: int, tokens: list[int], window: int) -> Callable[[], Tensor]:
    if kind == "state":
        return lambda: run.state_map(answer_id, tokens)
    return lambda: run.window_map(kind, answer_id, tokens, window)


def _traced_tokens(fact: TokenizedFact, roles: Sequence[str] | None) -> list[int]:
    """The positions to restore. Those before the subject cost nothing: their effect is 0."""
    found = token_roles(len(fact.token_ids), fact.subject_span)
    tokens = [n for n, role in enumerate(found) if not roles or role in roles]
    if not tokens:
        present = ", ".join(dict.fromkeys(role for role in found if role))
        raise FactError(f"No token of this prompt is a {' or '.join(roles or ())}. It has: {present}.")
    return tokens


def _on_all_tokens(restored: Tensor, tokens: list[int], n_tokens: int) -> np.ndarray:
    values = np.full((n_tokens, *restored.shape[1:]), np.nan)
    values[tokens] = restored.double().cpu().numpy()
    return values


def _length(fact: TokenizedFact) -> int:
    return fact.subject_span[1] - fact.subject_span[0]


def _label(fact: TokenizedFact) -> str:
    return repr(fact.fact.subject) if fact.fact else "prompt"
