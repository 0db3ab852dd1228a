"""The gradient of each row's loss with respect to a matrix, as what came into it and what its output wants.

grad_W L = sum_t delta_t x_t^T     x_t the input at token t, delta_t = dL / d(W x_t + b)

Only x and delta are kept, never the product; nothing below the lowest matrix takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editing.errors import BaseModelError
from editing.meta_learning.texts import Texts
from tracer.anatomy.hidden import by_token
from tracer.model import LanguageModel
from tracer.sweep.hooks import only_here


@dataclass(frozen=True, eq=False)
class Factors:
    """Of one matrix and each row: one row is one edit.

    Attributes:
        inputs: x, [row, token, n].
        deltas: [row, token, m].
    """

    inputs: Tensor
    deltas: Tensor

    @property
    def kept(self) -> Tensor:
        """Tokens that count: neither x nor delta is zero, as both are at padding, bool [row, token]."""
        return (self.inputs != 0).any(-1) & (self.deltas != 0).any(-1)


def gradient_factors(
    texts: Texts, matrices: Mapping[str, nn.Module], *, smoothing: float = 0.0, scale: Tensor | None = None
) -> dict[str, Factors]:
    """The factors of the gradient of each row's nll, times `scale` [row], with the model as it is now."""
    inputs: dict[str, Tensor] = {}
    taps: dict[str, Tensor] = {}

    def tap(weight: str) -> Callable[..., Tensor]:
        """A hook that keeps what enters the matrix, and adds a zero whose gradient is that of its output."""

        def hook(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if weight in taps:
                raise BaseModelError(f"{weight} is used twice in a pass: its gradient is not that of one use.")
            inputs[weight] = by_token(arguments[0].detach(), texts.n_rows)
            taps[weight] = torch.zeros_like(output, requires_grad=True)  # dL / d tap = delta
            return output + taps[weight]

        return hook

    with ExitStack() as hooks, torch.enable_grad():
        for weight, module in matrices.items():
            hooks.callback(module.register_forward_hook(only_here(tap(weight))).remove)
        losses, _ = texts.scores(smoothing=smoothing)
        total = losses.sum() if scale is None else (losses * scale.to(losses)).sum()
        deltas = torch.autograd.grad(total, [taps[weight] for weight in matrices])
    return {
        weight: Factors(inputs[weight], by_token(delta, texts.n_rows))
        for weight, delta in zip(matrices, deltas, strict=True)
    }


@contextmanager
def frozen(model: LanguageModel) -> Iterator[None]:
    """While the block runs, no weight of the model keeps what its own gradient would need."""
    were: list[Any] = [parameter for parameter in model.torch.parameters() if parameter.requires_grad]
    for parameter in were:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in were:
            parameter.requires_grad_(True)
