"""One value matrix y = W k + b while it is trained: copies of it under Adam, in a ball where there is one.

The model's own weights are never touched: a hook computes W k + b from the copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tracer.anatomy import is_stored_transposed
from tracer.model import LanguageModel
from tracer.precision import wide
from tracer.sweep.hooks import only_here


class TrainedMatrix:
    """One copy that all rows of a batch share, or one for each row.

    Attributes:
        start: the model's own values, by parameter name: the weight and, where there is one, the bias.
        values: the copies, [...] as stored, or [row, ...]. In 16 bits Adam's own numbers underflow:
            they are float32 or wider.
    """

    def __init__(
        self, model: LanguageModel, layer: int, *, rate: float, radius: float | None, rows: int | None = None
    ) -> None:
        self.start = trained_parameters(model, layer)
        self.values = {
            name: wide(value).expand(*(() if rows is None else (rows,)), *value.shape).clone().requires_grad_()
            for name, value in self.start.items()
        }
        self._matrix, self._each = model.anatomy.value_matrix(layer), rows is not None
        self._ball = {} if radius is None else {name: ball_around(value, radius) for name, value in self.start.items()}
        self._adam = torch.optim.Adam(self.values.values(), lr=rate)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While the block runs, the matrix computes with the copies."""
        transposed = is_stored_transposed(self._matrix)

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            weight, *bias = (value.to(inputs[0].dtype) for value in self.values.values())
            keys = inputs[0]
            if self._each:  # some models run the tokens of all rows in one
                keys = keys.reshape(len(weight), -1, keys.shape[-1])
            out = keys @ (weight if transposed else weight.mT)
            return sum((term.unsqueeze(-2) for term in bias), out).reshape(output.shape)

        handle = self._matrix.register_forward_hook(only_here(hook))
        try:
            yield
        finally:
            handle.remove()

    def step(self, loss: Tensor) -> None:
        """One step of Adam down the gradient of `loss`."""
        parameters: list[Any] = list(self.values.values())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        self._adam.step()

    @torch.no_grad()
    def put_back(self) -> Tensor:
        """Puts entries outside the ball back; the share of all entries that were, [] or [row]."""
        outside = torch.zeros(next(iter(self.values.values())).shape[: int(self._each)], dtype=torch.double)
        for name, (low, high) in self._ball.items():
            value = self.values[name]
            outside += ((value < low) | (value > high)).flatten(int(self._each)).sum(-1).cpu()
            value.clamp_(low.to(value.dtype), high.to(value.dtype))
        return outside / sum(value.numel() for value in self.start.values())

    def rounded(self, row: int | None = None) -> tuple[dict[str, Tensor], float]:
        """The copies (of one row) in the model's own dtype, and ||cast(W) - W|| / ||W - W0|| of the weight."""
        wanted = {name: value.detach() if row is None else value.detach()[row] for name, value in self.values.items()}
        values = {name: value.to(self.start[name].dtype, copy=True) for name, value in wanted.items()}
        weight = next(iter(self.start))
        change = (wanted[weight].double() - self.start[weight].double()).norm()
        lost = (values[weight].double() - wanted[weight].double()).norm()
        return values, float(lost / change) if change else 0.0


def trained_parameters(model: LanguageModel, layer: int) -> dict[str, Tensor]:
    """The value matrix's weight and, where it has one, its bias, by parameter name."""
    matrix, weight = model.anatomy.value_matrix(layer), model.anatomy.value_weight_name(layer)
    bias = getattr(matrix, "bias", None)
    found = {weight: matrix.get_parameter("weight").detach()}
    return found if bias is None else found | {f"{weight.rpartition('.')[0]}.bias": bias.detach()}


def ball_around(value: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The lowest and highest entries within `radius` of `value`, in its dtype: rounding never leaves the ball."""
    low, high = ((value.double() + way * radius).to(value.dtype) for way in (-1, 1))
    low = torch.where(value.double() - low.double() > radius, torch.nextafter(low, value), low)
    return low, torch.where(high.double() - value.double() > radius, torch.nextafter(high, value), high)
