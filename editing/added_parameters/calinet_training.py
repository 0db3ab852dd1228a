"""Training of branches on prompts and their answers; the model's own parameters are held.

    loss = mean over prompts of -(1/T) sum_t log p(y_t | x, y_<t)  +  weight * KL (`calinet_keeping`)
What enters the lowest of the layers is recorded once; in each step only the blocks from there up are run,
some prompts at a time, their gradients added up before the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.added_parameters.calinet_branch import CalibrationBranch
from editing.added_parameters.calinet_keeping import Kept
from editing.added_parameters.side_branch import add_branch
from editing.errors import EditFailedError
from editing.fine_tuning.descent import Batch, batch_of
from editing.request import EditRequest
from tracer.model import LanguageModel
from tracer.model.inputs import target_encoding
from tracer.model.prompt_ends import prompts_end_at

CHUNK = 32  # prompts that are run together
HALF = math.log(2)  # an answer whose joint probability is above 1/2 has no token that another one beats


@dataclass(frozen=True, eq=False)
class Chunk:
    """Prompts that are run together, and where each of them ends (an encoder-decoder's: in the decoder)."""

    batch: Batch
    ends: tuple[int, ...]

    def nll(self) -> Tensor:
        """Of each prompt's answer, a mean over its tokens, [prompt]."""
        with prompts_end_at(self.batch.model, self.ends):
            return self.batch.nll()


def chunks_of(model: LanguageModel, layer: int, requests: Sequence[EditRequest], size: int = CHUNK) -> list[Chunk]:
    """Records what enters block `layer` for these requests, `size` at a time."""
    chunks = []
    for begin in range(0, len(requests), size):
        some = requests[begin : begin + size]
        each = [target_encoding(model, request.prompt, request.new) for request in some]
        ends = tuple(encoding.n_prompt - encoding.n_encoder - 1 for encoding in each)
        with prompts_end_at(model, ends):
            chunks.append(Chunk(batch_of(model, layer, some, "target_new"), ends))
    return chunks


@dataclass(frozen=True)
class Fit:
    """How training went: losses of each prompt when it was first seen and when last, and steps taken."""

    first: tuple[float, ...]
    last: tuple[float, ...]
    steps: int


def fit_branches(
    model: LanguageModel,
    branches: Sequence[CalibrationBranch],
    groups: Sequence[Sequence[Chunk]],
    *,
    rate: float,
    steps: int,
    stop_below: float,
    kept: Kept | None = None,
    weight: float = 0.0,
    each_step: Callable[[], object] = lambda: None,
) -> Fit:
    """Adam, one group of chunks a step in turn; trains the branches in place.

    Ends once the mean loss is below `stop_below` and every answer is the most probable one; with prompts to
    be `kept` only when `weight` times their KL is below it too.

    Raises:
        EditFailedError: the loss became NaN or infinite.
    """
    parameters = [parameter.requires_grad_() for branch in branches for parameter in branch.parameters]
    optimiser = torch.optim.Adam(parameters, lr=rate)
    lengths = [torch.cat([chunk.batch.lengths for chunk in group]) for group in groups]
    first: list[Tensor | None] = [None] * len(groups)
    last, taken = list(first), 0
    with _attached(model, branches):
        for step in range(steps + len(groups)):  # after the last step each group is read once more
            at = step % len(groups)
            found, gradients = _gradients(groups[at], parameters)
            moved = _add_kept(gradients, parameters, kept, weight)
            if not torch.isfinite(found).all():
                raise EditFailedError(f"The loss became {found.mean().item()} after {taken} steps. Use a smaller rate.")
            first[at], last[at] = found if first[at] is None else first[at], found
            if moved < stop_below and _learnt(last, lengths, stop_below):
                break
            if step < steps:
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimiser.step()
                taken += 1
                each_step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return Fit(_listed(first), _listed(last), taken)


def _gradients(group: Sequence[Chunk], parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Losses of a group's prompts, [prompt], and the gradients of their mean."""
    n_prompts = sum(len(chunk.ends) for chunk in group)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    losses = []
    for chunk in group:
        nll = chunk.nll()
        for sum_, gradient in zip(total, torch.autograd.grad(nll.sum() / n_prompts, parameters), strict=True):
            sum_ += gradient
        losses.append(nll.detach())
    return torch.cat(losses), total


def _add_kept(gradients: Sequence[Tensor], parameters: Sequence[Tensor], kept: Kept | None, weight: float) -> float:
    """Adds the gradients of weight * KL, and returns that; 0 where nothing is to be kept."""
    if kept is None or not weight:
        return 0.0
    moved = weight * kept.divergence()
    for sum_, gradient in zip(gradients, torch.autograd.grad(moved, parameters), strict=True):
        sum_ += gradient
    return moved.item()


def _learnt(last: Sequence[Tensor | None], lengths: Sequence[Tensor], stop_below: float) -> bool:
    seen = [(losses, length) for losses, length in zip(last, lengths, strict=True) if losses is not None]
    if len(seen) < len(last):
        return False
    low = torch.cat([losses for losses, _ in seen]).mean() < stop_below
    return bool(low) and all(bool((losses * length < HALF).all()) for losses, length in seen)


@contextmanager
def _attached(model: LanguageModel, branches: Sequence[CalibrationBranch]) -> Iterator[None]:
    with ExitStack() as stack:
        for branch in branches:
            stack.callback(add_branch(model, branch.layer, branch.increment, here=True))
        yield


def _listed(losses: Sequence[Tensor | None]) -> tuple[float, ...]:
    return tuple(value for group in losses if group is not None for value in group.tolist())
