"""Value slots: the columns of W, each what one neuron writes, and output embeddings as what could be written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from editing.change import LowRank
from editing.locate_then_edit.knowledge_neurons import Neuron
from tracer.anatomy import is_stored_transposed
from tracer.model import LanguageModel


def answer_embedding(model: LanguageModel, tokens: Sequence[int]) -> Tensor:
    """The mean of the tokens' rows of the output embedding, as the residual stream would hold it, [d_model].

    Where the model projects its states before the head (OPT-350m), the rows are taken back through that.
    """
    head = model.anatomy.head.get_parameter("weight").detach()
    found = head[list(tokens)].double().mean(0)
    for module in reversed(model.anatomy.after_blocks):
        if isinstance(module, nn.Linear):
            found = found @ module.weight.detach().double()
    return found


def column(model: LanguageModel, neuron: Neuron) -> Tensor:
    """v_i, what the neuron writes, [d_model], float64."""
    matrix = model.anatomy.value_matrix(neuron[0])
    weight = matrix.get_parameter("weight").detach()
    return (weight[neuron[1]] if is_stored_transposed(matrix) else weight[:, neuron[1]]).double()


def columns_changed(model: LanguageModel, slots: Sequence[Neuron], columns: Sequence[Tensor]) -> LowRank:
    """A change of these columns of one layer alone."""
    layer = slots[0][0]
    name = model.anatomy.value_weight_name(layer)
    weight = model.torch.get_parameter(name)
    width = weight.shape[0 if is_stored_transposed(model.anatomy.value_matrix(layer)) else 1]
    into = torch.zeros(width, len(slots), dtype=torch.float64)
    into[[at for _, at in slots], range(len(slots))] = 1
    return LowRank(name, torch.stack(tuple(columns), dim=1).cpu(), into)
