"""Training a scope classifier: prompts inside a fact's scope come near its own prompt, others go away.

L = mean over inside prompts of -log s(u, x)
  + mean over outside prompts of -log(1 - s(u, x))
  + mean over inside prompts of other facts of the batch of the same        (Mitchell et al. 2022, sec. 3)
-log s is the squared distance d; -log(1 - s) = -log(-expm1(-d)), d floored where it would be infinite.
The base model takes no part: the classifier shares nothing with it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from editing.errors import RequestError
from editing.memory.scope import Scope, encoder_named, untrained_scope
from editing.memory.scoped import ScopedFact, ScopedFacts, check_facts
from editing.setting_checks import check_above_zero, check_not_negative, check_whole
from editing.training.checkpoint import EDITOR, State, check_same_training, resume, save_state
from editing.training.result import TrainingResult
from tracer.progress import bar

NEAREST = 1e-6  # the least squared distance whose -log(1 - s) is taken


@dataclass(frozen=True, kw_only=True)
class ScopeTraining:
    """Settings; our choice, the paper trains a whole encoder instead of a head.

    Attributes:
        steps: at most.
        batch: facts a step.
        rate: of Adam.
        rank: rows of U.
        scale: that w begins with: 1 makes 1/2 the similarity of a cosine of 0.65.
        every: steps between looks at the held-out facts, and between checkpoints.
        patience: steps without a better look that end the training.
        held_out: about how many facts it is checked on, with subjects of their own; None: a tenth of them.
    """

    steps: int = 400
    batch: int = 32
    rate: float = 0.01
    rank: int = 32
    scale: float = 1.0
    every: int = 50
    patience: int = 200
    held_out: int | None = None

    def __post_init__(self) -> None:
        given = {} if self.held_out is None else {"held_out": 100}
        check_whole(self, {"steps": 400, "batch": 32, "rank": 32, "every": 50, "patience": 200} | given)
        check_not_negative(self, {"rate": 0.01})
        check_above_zero(self, {"scale": 1.0})

    def ends(self, state: State) -> bool:
        """Whether patience is at an end."""
        return state.step - state.best_step >= self.patience

    def split(self, facts: ScopedFacts) -> tuple[ScopedFacts, ScopedFacts]:
        """Facts to look at, and facts to learn from.

        Raises:
            RequestError: too few for both.
        """
        held, rest = facts.in_two(0.1 if self.held_out is None else self.held_out / len(facts.facts))
        if not held.facts or len(rest.facts) < 2:
            raise RequestError(f"{facts} leaves nothing to hold out or to learn from. Give a hundred facts or more.")
        return held, rest


class Head(nn.Module):
    """`w` and `U` of a scope, in training."""

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self.encoder, self.scale, self.mix = scope.encoder, nn.Parameter(scope.scale), nn.Parameter(scope.mix)

    def forward(self, vectors: Tensor) -> Tensor:
        """`h` of texts whose vectors these are, [text, width + rank]."""
        return torch.cat((vectors * self.scale, vectors @ self.mix.T), dim=1)


@torch.inference_mode(False)
@torch.enable_grad()
def train_scope(
    encoder: str,
    facts: ScopedFacts,
    settings: ScopeTraining,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Scope:
    """The head with the least loss on held-out facts; a run with the same folder goes on where it was.

    Raises:
        RequestError: an encoder without vectors, no facts, too few to hold some out, or a folder with another
            training.
    """
    check_facts(facts)
    (held, rest), vectors = settings.split(facts), _Vectors(encoder)
    head = Head(untrained_scope(encoder, rank=settings.rank, scale=settings.scale, seed=seed))
    state = State(head, torch.optim.Adam(head.parameters(), settings.rate))
    about = {"settings": dataclasses.asdict(settings), "seed": seed, "encoder": encoder, "data": str(facts)}
    where = None if folder is None else Path(folder)
    if where is not None:
        groups = {"training": rest, "held_out": held}
        subjects = {name: sorted({fact.subject for fact in group.facts}) for name, group in groups.items()}
        check_same_training(where, {"method": "SERAC", **about}, subjects)
        resume(where, state)
    with bar(settings.steps, "scope classifier", show=progress, unit="step") as shown:
        shown.update(state.step)
        if not state.curve:
            _look(state, head, vectors, held)
        while state.step < settings.steps and not settings.ends(state):
            begun = time.perf_counter()
            _step(state, head, vectors, rest.facts, settings, seed)
            looked = state.step % settings.every == 0 or state.step == settings.steps
            if looked:
                _look(state, head, vectors, held)
            state.seconds += time.perf_counter() - begun
            if looked and where is not None:
                _scope(state, encoder, about).save(where / EDITOR)
                save_state(where, state)
            shown.update()
    if where is not None:
        _scope(state, encoder, about).save(where / EDITOR)  # once more, for a folder that has lost it
    result = TrainingResult.of(state, torch.device("cpu"), early=settings.ends(state))
    return dataclasses.replace(_scope(state, encoder, about), result=result)


def _scope(state: State, encoder: str, about: dict[str, Any]) -> Scope:
    """The best one so far."""
    trained = {**about, "steps": state.step, "curve": state.validations}
    return Scope(encoder, state.best["scale"], state.best["mix"], trained=trained)


class _Vectors:
    """Vectors of texts, each encoded once."""

    def __init__(self, encoder: str) -> None:
        self._encoder, self._known = encoder_named(encoder), {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = self._encoder.encode(missing).astype(np.float32)
        self._known |= dict(zip(missing, torch.from_numpy(found), strict=True))
        return torch.stack([self._known[text] for text in texts])


def _step(
    state: State, head: Head, vectors: _Vectors, facts: Sequence[ScopedFact], settings: ScopeTraining, seed: int
) -> None:
    generator = np.random.default_rng((seed, state.step))  # of the step alone: a run that goes on draws the same
    chosen = [facts[n] for n in generator.permutation(len(facts))[: settings.batch]]
    inside = [_one_of((fact.prompt, *fact.inside), generator) for fact in chosen]
    outside = [_one_of([text for text, _ in fact.outside], generator) for fact in chosen]
    keys, near, far = (head(vectors(texts)) for texts in ([f.prompt for f in chosen], inside, outside))
    others = (near[:, None] - keys[None]).square().sum(-1)
    apart = torch.tensor([[one.subject != other.subject for other in chosen] for one in chosen])
    inside_loss, outside_loss = _squares(near, keys).mean(), _away(_squares(far, keys)).mean()
    loss = inside_loss + outside_loss
    if apart.any():
        loss = loss + _away(others[apart]).mean()
    state.optimiser.zero_grad()
    loss.backward()
    state.optimiser.step()
    state.step += 1
    losses = {"loss": loss, "inside_loss": inside_loss, "outside_loss": outside_loss}
    state.curve.append({"step": state.step} | {name: each.item() for name, each in losses.items()})


@torch.no_grad()
def _look(state: State, head: Head, vectors: _Vectors, held: ScopedFacts) -> None:
    """Losses and shares decided rightly on the held-out facts; keeps the head if it is the best so far."""
    near, far = [], []
    for fact in held.facts:
        key, *inside = head(vectors([fact.prompt, *fact.inside]))
        near += _squares(torch.stack(inside), key).tolist()
        far += _squares(head(vectors([text for text, _ in fact.outside])), key).tolist()
    inside_loss, outside_loss = float(np.mean(near)), float(_away(torch.tensor(far)).mean())
    record = {"step": state.step, "validation": True, "loss": inside_loss + outside_loss}
    record |= {"inside_loss": inside_loss, "outside_loss": outside_loss, "n_inside": len(near), "n_outside": len(far)}
    record |= {"inside": float(np.mean([d < math.log(2) for d in near]))}
    record |= {"outside": float(np.mean([d >= math.log(2) for d in far]))}
    state.curve.append(record)
    if record["loss"] < state.best_loss:
        state.keep_best(record["loss"])


def _squares(some: Tensor, others: Tensor) -> Tensor:
    return (some - others).square().sum(-1)


def _away(squares: Tensor) -> Tensor:
    """-log(1 - s) of s = exp(-square), finite also where the two texts are one."""
    return -torch.log(-torch.expm1(-squares.clamp(min=NEAREST)))


def _one_of(texts: Sequence[str], generator: np.random.Generator) -> str:
    return texts[int(generator.integers(len(texts)))]
