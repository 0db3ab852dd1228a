"""Which weight matrices an editing network changes: y = W x + b with W [m, n]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from editing.change import writable
from editing.errors import BaseModelError, RequestError
from tracer.anatomy import is_stored_transposed
from tracer.anatomy.names import Names
from tracer.model import LanguageModel

Sizes = Mapping[str, tuple[int, int]]  # weight name: (n inputs, m outputs)


def feed_forward_weights(model: LanguageModel, blocks: int) -> tuple[str, ...]:
    """The names of all matrices of the MLPs of the last `blocks` blocks of each stack; of a gated MLP all three.

    Raises:
        RequestError: not so many blocks.
        AnatomyError: MLPs without matrices of their own.
    """
    fewest = min(len(stack.layers) for stack in model.anatomy.stacks)
    if not 0 < blocks <= fewest:
        raise RequestError(f"blocks={blocks}, but {model.name} has {fewest}. Write blocks={min(3, fewest)}.")
    found = []
    for stack in model.anatomy.stacks:
        attention = [name for name in (_attention(stack.names), stack.names.cross_site) if name]
        for layer in stack.layers[-blocks:]:
            model.anatomy.value_weight_name(layer)  # says so where a mixture's experts are parts of one tensor
            for path, module in model.anatomy.blocks[layer].named_modules():
                inside = any(f"{path}.".startswith(f"{name}.") for name in attention)
                if isinstance(module, nn.Linear | Conv1D) and not inside:
                    found.append(f"{model.anatomy.block_path(layer)}.{path}.weight")
    return tuple(found)


def _attention(names: Names) -> str:
    """The module that holds a block's attention."""
    return names.head_matrix.rpartition(".")[0] if names.head_matrix else names.attention_site.partition(".")[0]


def matrix(model: LanguageModel, weight: str) -> nn.Module:
    """The module that multiplies by this weight.

    Raises:
        BaseModelError: there is none, or it cannot be written.
    """
    writable(model, weight)
    path, _, kind = weight.rpartition(".")
    module = model.torch.get_submodule(path)
    if not isinstance(module, nn.Linear | Conv1D) or kind != "weight":
        raise BaseModelError(
            f"{weight} is the {kind} of a {type(module).__name__}. Name weights of Linear or Conv1D modules."
        )
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
    """The lowest block with one of these weights, counted through.

    Raises:
        RequestError: a weight outside the blocks.
    """
    layers = {f"{model.anatomy.block_path(layer)}.": layer for layer in range(model.n_layers)}
    of_each = [next((layer for begin, layer in layers.items() if weight.startswith(begin)), None) for weight in weights]
    found = [layer for layer in of_each if layer is not None]
    if not weights or len(found) < len(weights):
        outside = [weight for weight, layer in zip(weights, of_each, strict=True) if layer is None]
        raise RequestError(
            f"{outside or 'No weight'} is in no block. Name weights such as {next(iter(layers))}….weight."
        )
    return min(found)


def check_sizes(model: LanguageModel, expected: Sizes) -> None:
    """Raises BaseModelError where the model lacks one of these matrices or has it in another size."""
    found = sizes(model, tuple(expected))
    for weight, size in expected.items():
        if found[weight] != size:
            raise BaseModelError(f"{weight} is {found[weight]} here; the editing network was trained for {size}.")
