"""A small MLP beside an MLP: what it adds to facts that are said wrongly.

    plain   dFFN(x) = V act(K x)                        2 d r parameters
    gated   dFFN(x) = V (act(G x) * (K x))              3 d r
(Dong et al. 2022, arXiv:2210.03329, eq. 3.) With V = 0 it begins as no change at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor

from editing.added_parameters.side_branch import SideBranch, activation

Init = Literal["identity", "published"]


class CalibrationBranch(SideBranch, kind="calinet branch"):
    """The MLP beside one layer.

    Attributes:
        layer: which.
        act: the activation function's name.
        keys: K, [slot, d_model].
        values: V's columns, [slot, d_model].
        gates: G, [slot, d_model]; None: plain.
    """

    def __init__(self, layer: int, act: str, keys: Tensor, values: Tensor, gates: Tensor | None = None) -> None:
        self.layer, self.act, self.keys, self.values, self.gates = layer, act, keys, values, gates

    @classmethod
    def new(
        cls, layer: int, act: str, like: Tensor, slots: int, *, gated: bool, init: Init, generator: torch.Generator
    ) -> Self:
        """One to be trained, in the dtype and on the device of `like` [d_model].

        Drawn as linear layers are by default, uniform within 1 / sqrt(inputs); values too if "published", else 0.
        """
        d_model = len(like)

        def drawn(inputs: int) -> Tensor:
            uniform = torch.rand(slots, d_model, generator=generator) * 2 - 1
            return (uniform / math.sqrt(inputs)).to(like)

        keys, gates = drawn(d_model), drawn(d_model) if gated else None
        values = drawn(slots) if init == "published" else torch.zeros_like(keys)
        return cls(layer, act, keys, values, gates)

    @property
    def parameters(self) -> list[Tensor]:
        """The matrices to train: keys, values, and gates where the family has them."""
        return list(self.tensors().values())

    def increment(self, entering: Tensor) -> Tensor:
        """What is added, [..., d_model]."""
        keys, values = self.keys.to(entering), self.values.to(entering)
        inner, gated = entering @ keys.T, activation(self.act)
        if self.gates is None:
            return gated(inner) @ values
        return (gated(entering @ self.gates.to(entering).T) * inner) @ values

    def detached(self) -> Self:
        """The same on the CPU, no longer in training."""
        parts = {name: tensor.detach().cpu().clone() for name, tensor in self.tensors().items()}
        return type(self)(self.layer, self.act, **parts)

    def tensors(self) -> dict[str, Tensor]:
        """The matrices by name, for a file: keys and gates [slot, d_model], values [slot, d_model]."""
        plain = {"keys": self.keys, "values": self.values}
        return plain if self.gates is None else {**plain, "gates": self.gates}

    @classmethod
    def restored(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The branch that `tensors` and its record were written from."""
        return cls(about["layer"], about["act"], tensors["keys"], tensors["values"], tensors.get("gates"))
