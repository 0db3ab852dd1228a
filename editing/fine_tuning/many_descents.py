"""The descents of several requests at once, each on a copy of the matrix that is its own.

Rows of a batch meet nowhere, so the gradient of the sum of their losses has each row's gradient in its own copy, and
Adam goes entry by entry: what is found is what each request finds alone, to rounding. A pass over eight short
prompts takes little longer than one over one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from editing.fine_tuning.descent import STOP_BELOW, Batch, Descent, finite
from editing.fine_tuning.trained_matrix import TrainedMatrix, trained_parameters
from tracer.model import LanguageModel

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
    count = len(batch.lengths)
    trained = TrainedMatrix(model, layer, rate=rate, radius=radius, rows=count)
    going = torch.ones(count, dtype=torch.bool, device=batch.lengths.device)
    taken, clamped, first = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.double), []
    with trained.in_use():
        for turn in range(steps):
            nll = batch.nll()
            losses = finite(nll, turn)
            first = first or losses
            each_step()
            going &= nll.detach() >= STOP_BELOW
            if not going.any():
                break
            done = {name: value.detach()[~going].clone() for name, value in trained.values.items()}
            trained.step(nll[going].sum())
            taken += going.cpu()
            with torch.no_grad():
                for name, value in trained.values.items():
                    value[~going] = done[name]  # Adam's momentum would carry them on
            clamped += trained.put_back()
        with torch.no_grad():
            last = finite(batch.nll(), int(taken.max()))
    share = (clamped / taken.clamp(min=1)).tolist()
    return [
        Descent(*trained.rounded(row), ([first[row]], [last[row]]), int(taken[row]), share[row]) for row in range(count)
    ]
