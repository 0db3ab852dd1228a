"""Parts of sub-layers: attention heads and MLP neurons, as columns of the input of an output matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from tracer.errors import SiteError
from tracer.groups import whole_numbers
from tracer.model import LanguageModel
from tracer.site import Unit, UnitKind


def heads(model: LanguageModel, layers: Sequence[int] | None = None) -> list[Unit]:
    """Every head of these layers (default: all), by layer and then by number.

    Raises:
        AnatomyError: where the heads come together is not known for this family.
        SiteError: no layer, or one that the model does not have.
    """
    model.check_decoder_only("trace_heads")
    chosen = range(model.n_layers) if layers is None else whole_numbers(layers)
    if not chosen:
        raise SiteError(f"layers={layers!r} names no layers. Write layers=(2, 3), or None for all.")
    found = []
    for layer in chosen:
        size = input_width(model.anatomy.head_matrix(layer)) // model.anatomy.n_heads
        found += [Unit("head", layer, n * size, (n + 1) * size) for n in range(model.anatomy.n_heads)]
    return found


def neurons(model: LanguageModel, chosen: Sequence[tuple[int, int]]) -> list[Unit]:
    """Neurons by (layer, number).

    Raises:
        AnatomyError: this family's MLPs have no single output matrix.
        SiteError: no neuron, or one that the model does not have.
    """
    model.check_decoder_only("trace_neurons")
    pairs = [whole_numbers(pair) for pair in chosen] if isinstance(chosen, Iterable) else []
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise SiteError(
            f"{chosen!r}: no neurons to trace. Write [(layer, neuron), ...], or attribute_neurons(model, fact).top(20)."
        )
    for layer, neuron in pairs:
        width = input_width(model.anatomy.value_matrix(layer))
        if not 0 <= neuron < width:
            raise SiteError(f"Layer {layer} has neurons 0 to {width - 1}, not {neuron}.")
    return [Unit("neuron", layer, neuron, neuron + 1) for layer, neuron in pairs]


def matrices_of(model: LanguageModel, kind: UnitKind) -> list[nn.Module]:
    """The matrix of each layer whose input holds units of this kind."""
    matrix = model.anatomy.head_matrix if kind == "head" else model.anatomy.value_matrix
    return [matrix(layer) for layer in range(model.n_layers)]


def input_width(matrix: nn.Module) -> int:
    """How wide a matrix's input is, whichever way its weight is stored."""
    return int(matrix.in_features) if isinstance(matrix, nn.Linear) else int(matrix.weight.shape[0])  # pyright: ignore
