"""The descents of several requests at once, each on a copy of the matrix that is its own.

Rows of a batch meet nowhere, so the gradient of the sum of their losses has each row's gradient in its own copy, and
Adam goes entry by entry: what is found is what each request finds alone, to rounding. A pass over eight short
prompts takes little longer than one over one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from editing.fine_tuning.descent import (
    STOP_BELOW,
    Batch,
    Descent,
    ball_around,
    finite,
    share_lost,
    step,
    trained_parameters,
    wide,
)
from tracer.anatomy import is_stored_transposed
from tracer.model import LanguageModel
from tracer.sweep.hooks import only_here

MOST_BYTES = 1 << 31  # of all copies, their gradients and Adam's two moments


def most_together(model: LanguageModel, layer: int) -> int:
    """How many requests may have copies at the same time."""
    entries = sum(value.numel() for value in trained_parameters(model, layer).values())
    return max(1, MOST_BYTES // (16 * entries))


def descend_each(
    model: LanguageModel,
    layer: int,
    batch: Batch,
    *,
    rate: float,
    steps: int,
    radius: float | None,
    each_step: Callable[[], object] = lambda: None,
) -> list[Descent]:
    """As `descend` with each request of the batch by itself.

    Raises:
        EditFailedError: a loss became NaN or infinite.
    """
    start, count = trained_parameters(model, layer), len(batch.lengths)
    trained = {name: torch.stack([wide(value)] * count).requires_grad_() for name, value in start.items()}
    ball = {} if radius is None else {name: ball_around(value, radius) for name, value in start.items()}
    optimiser = torch.optim.Adam(trained.values(), lr=rate)
    going = torch.ones(count, dtype=torch.bool, device=batch.lengths.device)
    taken, clamped, first = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long), []
    with _replaced(model.anatomy.value_matrix(layer), list(trained.values())):
        for turn in range(steps):
            nll = batch.nll()
            losses = finite(nll, turn)
            first = first or losses
            each_step()
            going &= nll.detach() >= STOP_BELOW
            if not going.any():
                break
            done = {name: value.detach()[~going].clone() for name, value in trained.items()}
            step(optimiser, nll[going].sum())
            taken += going.cpu()
            with torch.no_grad():
                for name, value in trained.items():
                    value[~going] = done[name]  # Adam's momentum would carry them on
                for name, bounds in ball.items():
                    clamped += _clamp(trained[name], *bounds)
        with torch.no_grad():
            last = finite(batch.nll(), int(taken.max()))
    weight, entries = next(iter(start)), sum(value.numel() for value in start.values())
    found = []
    for row in range(count):
        wanted = {name: value.detach()[row] for name, value in trained.items()}
        values = {name: value.to(start[name].dtype, copy=True) for name, value in wanted.items()}
        lost = share_lost(start[weight], wanted[weight], values[weight])
        share = int(clamped[row]) / max(int(taken[row]), 1) / entries
        found.append(Descent(values, lost, ([first[row]], [last[row]]), int(taken[row]), share))
    return found


@contextmanager
def _replaced(matrix: nn.Module, trained: Sequence[Tensor]) -> Iterator[None]:
    """While the block runs, each row goes through its own weight [row, ...] and bias [row, d_model]."""
    transposed = is_stored_transposed(matrix)

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        weight, *bias = (value.to(inputs[0].dtype) for value in trained)
        rows = inputs[0].reshape(len(weight), -1, inputs[0].shape[-1])  # some models run tokens of all rows in one
        out = rows @ (weight if transposed else weight.mT)
        out = out + bias[0][:, None] if bias else out
        return out.reshape(*inputs[0].shape[:-1], -1)

    handle = matrix.register_forward_hook(only_here(hook))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _clamp(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Puts entries outside [low, high] back, and counts those of each row."""
    outside = ((value < low) | (value > high)).flatten(1).sum(1).cpu()
    value.clamp_(low.to(value.dtype), high.to(value.dtype))
    return outside
