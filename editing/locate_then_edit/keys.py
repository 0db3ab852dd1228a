"""Step 1, the key: what enters the value matrix W at the subject's last token.

    k = input of W,   y = W k + b
Averaged over contexts it is k* (Meng et al. 2022, eq. 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from editing.early_end import Hooked, hooked_until
from editing.locate_then_edit.rows import Rows
from editing.locate_then_edit.suffix import Part
from tracer.anatomy.hidden import by_token, hidden_of
from tracer.model import LanguageModel


@dataclass(frozen=True, eq=False)
class Reading:
    """What the model computes at the subjects' last tokens, the bare prompt being the first context.

    Attributes:
        keys: what enters W of a layer.
        outputs: W k + b there.
        reached: what the value was optimised for, at the bare prompt.
    """

    keys: Float[Tensor, "request context d_mlp"]
    outputs: Float[Tensor, "request context d_model"]
    reached: Float[Tensor, "request d_model"]


def read_keys(model: LanguageModel, rows: Rows, layer: int, *, last: int | None = None, part: Part = "mlp") -> Reading:
    """Keys and outputs of `layer`, and `part` of the layer `last`, in one pass that ends there."""
    last = layer if last is None else last
    n_rows = len(rows.ids)
    each = torch.arange(n_rows, device=rows.ids.device)
    found: dict[str, Tensor] = {}

    def at_lookup(hidden: Any) -> Float[Tensor, "request context width"]:
        return rows.of_contexts(by_token(hidden_of(hidden), n_rows)[each, rows.lookup])

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found["keys"], found["outputs"] = at_lookup(inputs[0]), at_lookup(output)

    def keep_reached(_module: nn.Module, _inputs: object, output: Any) -> None:
        found["reached"] = at_lookup(output)[:, 0]

    matrix = model.anatomy.value_matrix(last)
    ends = model.anatomy.blocks[last] if part == "block" else matrix
    hooks: list[Hooked] = [(model.anatomy.value_matrix(layer), keep), (ends, keep_reached)]
    with torch.no_grad(), hooked_until(hooks):
        model.torch.base_model(input_ids=rows.ids, attention_mask=rows.attention_mask, use_cache=False)
    return Reading(**found)
