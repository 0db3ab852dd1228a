"""Step 1, the key: what enters the value matrix W at the subject's last token.

    k = input of W,   y = W k + b
Averaged over contexts it is k* (Meng et al. 2022, eq. 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from editing.locate_then_edit.rows import Rows
from tracer.hidden import by_token
from tracer.model import LanguageModel


def keys_and_outputs(model: LanguageModel, layer: int, rows: Rows) -> tuple[Tensor, Tensor]:
    """The key and W k + b at the lookup token of each row: [row, d_mlp] and [row, d_model]."""
    found: dict[str, Tensor] = {}
    each = torch.arange(len(rows.ids), device=rows.ids.device)

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        key, value = (by_token(hidden, len(each)) for hidden in (inputs[0], output))
        found["key"], found["output"] = key[each, rows.lookup], value[each, rows.lookup]

    with torch.no_grad(), hooked_until(model, {layer: keep}):
        model.torch.base_model(input_ids=rows.ids, attention_mask=rows.attention_mask, use_cache=False)
    return found["key"], found["output"]


class _Reached(Exception):
    """Ends a forward pass once the last hooked layer has run."""


@contextmanager
def hooked_until(model: LanguageModel, hooks: dict[int, Callable[..., None]]) -> Iterator[None]:
    """Forward hooks on value matrices; the pass inside the block stops after the highest of these layers."""

    def stop(*_: object) -> None:
        raise _Reached

    with ExitStack() as stack:
        for layer, hook in hooks.items():
            stack.callback(model.anatomy.value_matrix(layer).register_forward_hook(hook).remove)
        stack.callback(model.anatomy.value_matrix(max(hooks)).register_forward_hook(stop).remove)
        try:
            yield
        except _Reached:
            return
