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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from editing.errors import RequestError
from editing.memory.scope import Scope, encoder_named, untrained_scope
from editing.memory.scoped import ScopedFact, ScopedFacts
from tracer.progress import bar
from tracer.storage import of_this_version, read_tensors, write_tensors

NEAREST = 1e-6  # the least squared distance whose -log(1 - s) is taken
CHECKPOINT = "scope-training.safetensors"


@dataclass(frozen=True, kw_only=True)
class ScopeTraining:
    """Settings; our choice, the paper trains a whole encoder instead of a head.

    Attributes:
        steps: at most.
        batch: facts a step.
        rate: of Adam.
        rank: rows of U.
        scale: that w begins with: 1 makes 1/2 the similarity of a cosine of 0.65.
        validate: steps between looks at the held-out facts, and between checkpoints.
        patience: looks without a better loss that end the training.
        held_out: share of the subjects it is checked on.
    """

    steps: int = 400
    batch: int = 32
    rate: float = 0.01
    rank: int = 32
    scale: float = 1.0
    validate: int = 50
    patience: int = 4
    held_out: float = 0.1


@dataclass(eq=False)
class _Run:
    """Where a training stands; all of it goes into a checkpoint."""

    step: int
    weights: list[Tensor]  # w, U
    optimiser: torch.optim.Adam
    best: list[Tensor]
    curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def waited(self) -> int:
        """Looks since the best one."""
        losses = [look["loss"] for look in self.curve]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0


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
        RequestError: an encoder without vectors, or too few facts to hold some out.
        FileFormatError: the folder holds another training.
    """
    held, rest = facts.in_two(settings.held_out)
    if not held.facts or len(rest.facts) < 2:
        raise RequestError(f"{facts} leaves nothing to hold out or to learn from. Give a hundred facts or more.")
    vectors = _Vectors(encoder)
    plan = {"settings": dataclasses.asdict(settings), "seed": seed, "encoder": encoder, "data": str(facts)}
    path = None if folder is None else Path(folder) / CHECKPOINT
    run = _read(path, plan) if path is not None and path.is_file() else _begun(encoder, settings, seed)
    with bar(settings.steps, "scope classifier", show=progress, unit="step") as shown:
        shown.update(run.step)
        while run.step < settings.steps and run.waited < settings.patience:
            if not run.curve:
                _look(run, vectors, held)
            until = min(settings.steps, run.step + settings.validate)
            for _ in range(run.step, until):
                _step(run, vectors, rest.facts, settings, seed)
                shown.update()
            _look(run, vectors, held)
            if path is not None:
                _write(path, run, plan)
    return Scope(encoder, *run.best, trained={**plan, "steps": run.step, "curve": run.curve})


class _Vectors:
    """Vectors of texts, each encoded once."""

    def __init__(self, encoder: str) -> None:
        self._encoder, self._known = encoder_named(encoder), {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = self._encoder.encode(missing).astype(np.float32)
        self._known |= dict(zip(missing, torch.from_numpy(found), strict=True))
        return torch.stack([self._known[text] for text in texts])


def _begun(encoder: str, settings: ScopeTraining, seed: int) -> _Run:
    start = untrained_scope(encoder, rank=settings.rank, scale=settings.scale, seed=seed)
    weights = [start.scale.requires_grad_(), start.mix.requires_grad_()]
    return _Run(0, weights, torch.optim.Adam(weights, settings.rate), [w.detach().clone() for w in weights])


def _step(run: _Run, vectors: _Vectors, facts: Sequence[ScopedFact], settings: ScopeTraining, seed: int) -> None:
    generator = np.random.default_rng((seed, run.step))  # of the step alone: a run that goes on draws the same
    chosen = [facts[n] for n in generator.permutation(len(facts))[: settings.batch]]
    inside = [_one_of((fact.prompt, *fact.inside), generator) for fact in chosen]
    outside = [_one_of([text for text, _ in fact.outside], generator) for fact in chosen]
    keys, near, far = (_placed(run.weights, vectors(texts)) for texts in ([f.prompt for f in chosen], inside, outside))
    others = (near[:, None] - keys[None]).square().sum(-1)
    apart = torch.tensor([[one.subject != other.subject for other in chosen] for one in chosen])
    loss = _squares(near, keys).mean() + _away(_squares(far, keys)).mean()
    if apart.any():
        loss = loss + _away(others[apart]).mean()
    run.optimiser.zero_grad()
    loss.backward()
    run.optimiser.step()
    run.step += 1


@torch.no_grad()
def _look(run: _Run, vectors: _Vectors, held: ScopedFacts) -> None:
    """Loss and shares decided rightly on the held-out facts; keeps the weights if they are the best so far."""
    near, far = [], []
    for fact in held.facts:
        key, *inside = _placed(run.weights, vectors([fact.prompt, *fact.inside]))
        near += _squares(torch.stack(inside), key).tolist()
        far += _squares(_placed(run.weights, vectors([text for text, _ in fact.outside])), key).tolist()
    loss = float(np.mean(near)) + float(_away(torch.tensor(far)).mean())
    right = {"inside": np.mean([d < math.log(2) for d in near]), "outside": np.mean([d >= math.log(2) for d in far])}
    if not run.curve or loss < min(look["loss"] for look in run.curve):
        run.best = [weight.detach().clone() for weight in run.weights]
    run.curve.append({"step": run.step, "loss": loss} | {name: float(share) for name, share in right.items()})


def _placed(weights: Sequence[Tensor], vectors: Tensor) -> Tensor:
    """h, [text, width + rank]."""
    return torch.cat((vectors * weights[0], vectors @ weights[1].T), dim=1)


def _squares(some: Tensor, others: Tensor) -> Tensor:
    return (some - others).square().sum(-1)


def _away(squares: Tensor) -> Tensor:
    """-log(1 - s)."""
    return -torch.log(-torch.expm1(-squares.clamp(min=NEAREST)))


def _one_of(texts: Sequence[str], generator: np.random.Generator) -> str:
    return texts[int(generator.integers(len(texts)))]


def _write(path: Path, run: _Run, plan: dict[str, Any]) -> None:
    found = run.optimiser.state_dict()["state"]
    named = {"weight": run.weights, "best": run.best}
    tensors = {f"{name}/{n}": tensor for name, several in named.items() for n, tensor in enumerate(several)}
    tensors |= {f"adam/{n}/{name}": tensor for n, state in found.items() for name, tensor in state.items()}
    write_tensors(path, tensors, {"kind": "scope training", "step": run.step, "curve": run.curve, "plan": plan})


def _read(path: Path, plan: dict[str, Any]) -> _Run:
    tensors, about = read_tensors(path, "scope training")
    if about.get("plan") != plan:
        raise RequestError(f"{path.parent} holds another training: {about.get('plan')}. Write another folder.")
    with of_this_version(path, "a training"):
        weights = [tensors[f"weight/{n}"].requires_grad_() for n in range(2)]
        optimiser = torch.optim.Adam(weights, plan["settings"]["rate"])
        names = ("step", "exp_avg", "exp_avg_sq")
        state = {n: {name: tensors[f"adam/{n}/{name}"] for name in names} for n in range(2)}
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        best = [tensors[f"best/{n}"] for n in range(2)]
        return _Run(int(about["step"]), weights, optimiser, best, curve=list(about["curve"]))
