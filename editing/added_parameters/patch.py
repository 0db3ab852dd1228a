"""Neurons beside the last MLP: each fires near one query and adds its value.

    a(x) = act(K x + b)      increment(x) = V^T a(x)      [neuron] keys, biases and values
With act = relu a neuron adds exactly nothing outside of its half-space k.x + b > 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from editing.added_parameters.side_branch import SideBranch, activation
from tracer.model import LanguageModel


class Patch(SideBranch, kind="t-patcher neurons"):
    """The neurons of one request.

    Attributes:
        layer: of the MLP.
        act: the activation function's name.
        keys: [neuron, d_model].
        biases: [neuron].
        values: [neuron, d_model].
        seen: what entered the MLP at the request's own tokens, which later neurons should not fire on,
            [token, d_model].
    """

    def __init__(self, layer: int, act: str, keys: Tensor, biases: Tensor, values: Tensor, seen: Tensor) -> None:
        self.layer, self.act = layer, act
        self.keys, self.biases, self.values, self.seen = keys, biases, values, seen

    @property
    def n_bytes(self) -> int:
        """Of the parameters added, in float32."""
        return 4 * (self.keys.numel() + self.biases.numel() + self.values.numel())

    def increment(self, entering: Tensor) -> Tensor:
        """What the neurons add, [..., d_model]."""
        return fired(entering, self.keys.to(entering), self.biases.to(entering), self.act) @ self.values.to(entering)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and what was seen."""
        return {name: getattr(self, name) for name in ("keys", "biases", "values", "seen")}

    @classmethod
    def restored(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The neurons that a file's tensors and record were written from."""
        parts = (tensors[name] for name in ("keys", "biases", "values", "seen"))
        return cls(about["layer"], about["act"], *parts)


def fired(entering: Tensor, keys: Tensor, biases: Tensor, act: str) -> Tensor:
    """a(x) = act(K x + b), [..., neuron]."""
    return activation(act)(entering @ keys.T + biases)


def attached_patches(model: LanguageModel) -> list[Patch]:
    """Of all edits of this model, the oldest first."""
    return [one for edit in model.edits for one in edit.attachments if isinstance(one, Patch)]
