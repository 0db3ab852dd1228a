"""How one weight changes: by a product of two thin matrices, or to new values altogether.

low rank      W' = W + out into^T
replacement   W' = values
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from editing.errors import BaseModelError
from tracer.anatomy import is_stored_transposed
from tracer.model import LanguageModel
from tracer.model.sharded import whole


class Change(Protocol):
    """What an edit does to one parameter of a model."""

    @property
    def weight(self) -> str:
        """The changed parameter's name in the model."""
        ...

    def delta(self, model: LanguageModel) -> Tensor:
        """What is to be added to the stored parameter as it is now, float64 on its device."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What a file must hold."""
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change out into^T in the orientation y = W k, float64.

    Attributes:
        weight: the parameter's name.
        out, into: the two thin matrices.
    """

    weight: str
    out: Float[Tensor, "d_model rank"]
    into: Float[Tensor, "d_mlp rank"]

    def delta(self, model: LanguageModel) -> Tensor:
        """The product, in the layout in which the parameter is stored."""
        parameter = writable(model, self.weight)
        out, into = (side.to(parameter.device, torch.float64) for side in (self.out, self.into))
        module = model.torch.get_submodule(self.weight.rpartition(".")[0])
        change = into @ out.T if is_stored_transposed(module) else out @ into.T
        return _fitting(change, parameter, self.weight)

    def tensors(self) -> dict[str, Tensor]:
        """Both factors by name, for a file."""
        return {"out": self.out, "into": self.into}


@dataclass(frozen=True, eq=False)
class Replacement:
    """New values for a parameter, as fine-tuning leaves them.

    Attributes:
        weight: the parameter's name.
        values: as they are stored, in the parameter's own type.
    """

    weight: str
    values: Tensor

    def delta(self, model: LanguageModel) -> Tensor:
        """New less present values: exact in float64, so that adding it gives `values` bit for bit."""
        parameter = writable(model, self.weight)
        values = self.values.to(parameter.device, torch.float64)
        return _fitting(values, parameter, self.weight) - parameter.detach().double()

    def tensors(self) -> dict[str, Tensor]:
        """The new values by name, for a file."""
        return {"values": self.values}


KINDS: Mapping[str, type[LowRank] | type[Replacement]] = {"low rank": LowRank, "replacement": Replacement}


def writable(model: LanguageModel, weight: str) -> Tensor:
    """The parameter of that name.

    Raises:
        BaseModelError: the model has none, or what is written to it would be lost or coarse: it is
            quantised to integers, offloaded and read anew from elsewhere for each pass, cut over processes, or made in
            inference mode, where nothing has gradients.
    """
    try:
        parameter = model.torch.get_parameter(weight)
    except AttributeError as error:
        raise BaseModelError(f"{model.name} has no weight {weight!r}, which this edit changes.") from error
    if parameter.is_inference():
        raise BaseModelError(f"{weight} was made in torch.inference_mode(). Load the model outside of it.")
    if parameter.is_meta:
        raise BaseModelError(f"{weight} is offloaded: a change would be lost. Load the model without offloading.")
    if whole(parameter) is not parameter:
        raise BaseModelError(f"{weight} is cut over several processes. Load the model in one, without tensor_parallel.")
    if not parameter.is_floating_point():
        kind = str(parameter.dtype).removeprefix("torch.")
        raise BaseModelError(f"{weight} is quantised ({kind}). Load the model unquantised, in float32 or bfloat16.")
    return parameter


def _fitting(change: Tensor, parameter: Tensor, weight: str) -> Tensor:
    if change.shape != parameter.shape:
        raise BaseModelError(f"{weight} is {tuple(parameter.shape)}, the edit's change {tuple(change.shape)}.")
    return change
