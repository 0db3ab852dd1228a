"""Which weight matrices an editing network changes: y = W x + b with W [m, n]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from editing.change import writable
from editing.errors import BaseModelError, RequestError
from tracer.anatomy import is_stored_transposed
from tracer.model import LanguageModel

Sizes = Mapping[str, tuple[int, int]]  # weight name: (n inputs, m outputs)


def feed_forward_weights(model: LanguageModel, blocks: int) -> tuple[str, ...]:
    """The names of all matrices of the MLPs of the last `blocks` blocks; of a gated MLP all three.

    Raises:
        RequestError: not so many blocks.
        AnatomyError: MLPs without matrices of their own.
    """
    if not 0 < blocks <= model.n_layers:
        raise RequestError(f"blocks={blocks}, but {model.name} has {model.n_layers}. Write blocks=3.")
    anatomy = model.anatomy
    attention = (anatomy.names.head_matrix or anatomy.names.attention_site).partition(".")[0]
    found = []
    for layer in range(model.n_layers - blocks, model.n_layers):
        anatomy.value_weight_name(layer)  # says so where a mixture's experts are parts of one tensor
        for path, module in anatomy.blocks[layer].named_modules():
            if isinstance(module, nn.Linear | Conv1D) and path.partition(".")[0] != attention:
                found.append(f"{anatomy.names.blocks}.{layer}.{path}.weight")
    return tuple(found)


def matrix(model: LanguageModel, weight: str) -> nn.Module:
    """The module that multiplies by this weight.

    Raises:
        BaseModelError: there is none, or it cannot be written.
    """
    writable(model, weight)
    module = model.torch.get_submodule(weight.rpartition(".")[0])
    if not isinstance(module, nn.Linear | Conv1D):
        raise BaseModelError(f"{weight} belongs to {type(module).__name__}. Name weights of Linear or Conv1D modules.")
    return module


def sizes(model: LanguageModel, weights: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each matrix, however it is stored."""
    found = {}
    for weight in weights:
        module = matrix(model, weight)
        shape = tuple(module.get_parameter("weight").shape)
        found[weight] = shape if is_stored_transposed(module) else shape[::-1]
    return found


def lowest_layer(model: LanguageModel, weights: Sequence[str]) -> int:
    """The lowest block with one of these weights.

    Raises:
        RequestError: a weight outside the blocks.
    """
    begin = f"{model.anatomy.names.blocks}."
    outside = [weight for weight in weights if not weight.startswith(begin)]
    if outside or not weights:
        raise RequestError(f"{outside or 'No weight'} is in no block. Name weights such as {begin}0.….weight.")
    return min(int(weight.removeprefix(begin).partition(".")[0]) for weight in weights)


def check_sizes(model: LanguageModel, expected: Sizes) -> None:
    """Raises BaseModelError where the model lacks one of these matrices or has it in another size."""
    found = sizes(model, tuple(expected))
    for weight, size in expected.items():
        if found[weight] != size:
            raise BaseModelError(f"{weight} is {found[weight]} here; the editing network was trained for {size}.")
