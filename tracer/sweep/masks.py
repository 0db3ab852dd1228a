"""Who sees whom, and how strongly: everything a model does to attention scores beside query times key.

Families say it in three places: the mask handed to each block (a sliding window; with ALiBi in
Falcon also a bias by head), an `alibi` argument (Bloom), and a buffer inside the attention module
(GPT-Neo's local layers). When tokens are packed anew, all three must follow their tokens.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from nnsight.intervention.source import Controller
from torch import Tensor, nn

from tracer.errors import AnatomyError

LONGEST = 1 << 24  # keys in one replayed block: far more than memory holds


def split(mask: Any, n_tokens: int) -> tuple[Tensor, Tensor | None]:
    """A block's attention mask as who sees whom, and what is added where they do.

    Returns:
        bool [row or 1, token, token]; and [row or 1, head or 1, token, token], or None where it is 0.

    Raises:
        AnatomyError: the mask has another form.
    """
    if mask is None:  # every token sees those before it
        return torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril().unsqueeze(0), None
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise AnatomyError(
            'The attention mask is not a [batch, head, query, key] tensor. Load with attn_implementation="sdpa".'
        )
    mask = mask[..., :n_tokens]
    if mask.dtype == torch.bool:
        return mask[:, 0], None
    seen = mask > torch.finfo(mask.dtype).min / 2
    bias = mask.masked_fill(~seen, 0)
    return seen[:, 0], bias if bias.any() else None


def additive(seen: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`bias` (else 0) where `seen`, the type's most negative number elsewhere.

    Args:
        seen: bool [row or 1, query, key].
        bias: [row or 1, head or 1, query, key].
        dtype: of the result, which has the shape of `bias`, and 1 for its head where there is none.
    """
    lowest = torch.finfo(dtype).min
    if bias is not None:
        return bias.to(dtype).masked_fill(~seen.unsqueeze(1), lowest)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, lowest).unsqueeze(1)


def at(table: Tensor, positions: Tensor, key_positions: Tensor) -> Tensor:
    """Entries of `table` [row or 1, head, token, token] for these queries and keys.

    Args:
        table: recorded.
        positions: token of each query, [query] or [row, query].
        key_positions: token of each key, [key] or [row, key].
    """
    table = table.to(positions.device)
    if positions.dim() == 1:
        return table[:1, :, positions[:, None], key_positions]
    each = torch.arange(len(positions), device=positions.device) if len(table) > 1 else positions.new_zeros(1)
    picked = table[each[:, None, None], :, positions[:, :, None], key_positions[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def alibi_at(alibi: Tensor, key_positions: Tensor, recorded_rows: int, rows: int) -> Tensor:
    """A block's `alibi` argument for these keys, in the form it came: [row, head, 1, key] or [row * head, 1, key].

    Args:
        alibi: as recorded.
        key_positions: token of each key, [key] or [row, key].
        recorded_rows: rows of the recording.
        rows: rows of the replay.
    """
    by_row = alibi.to(key_positions.device).reshape(recorded_rows, -1, 1, alibi.shape[-1])
    by_row = by_row[:1] if key_positions.dim() == 1 else by_row
    places = key_positions.reshape(len(by_row), 1, 1, -1).expand(-1, by_row.shape[1], -1, -1)
    picked = by_row.gather(-1, places).expand(rows, -1, -1, -1)
    return picked if alibi.dim() == 4 else picked.flatten(0, 1)


def built_in(block: nn.Module, n_tokens: int) -> Tensor | None:
    """Who sees whom by the block's own buffers, bool [1, token, token]; None where it has none."""
    found = [buffer[0, :, :n_tokens, :n_tokens] for _, _, buffer in _built_in(block)]
    return torch.stack(found).all(0) if found else None


def without_built_in(block: nn.Module) -> nn.Module:
    """The block itself, or a twin of it in which no buffer masks: weights, hooks and other parts are shared.

    A twin, so that nothing has to be put back, and other threads may run the block meanwhile.

    Raises:
        AnatomyError: accelerate moves the block's inputs between devices, or a forward was replaced by a
            function that is bound to the block's own modules: a twin would not do that.
    """
    twin = block
    for path, name, buffer in _built_in(block):
        twin = _with_buffer(twin, path, name, torch.ones_like(buffer[..., :1, :1]).expand(1, 1, LONGEST, LONGEST))
    return twin


def _built_in(block: nn.Module) -> list[tuple[list[str], str, Tensor]]:
    """Square bool buffers [1, 1, token, token]: the path to the module, the buffer's name, the buffer."""
    found = []
    for full, buffer in block.named_buffers():
        if buffer.dtype == torch.bool and buffer.dim() == 4 and buffer.shape[-1] == buffer.shape[-2]:
            *path, name = full.split(".")
            found.append((path, name, buffer))
    return found


def _with_buffer(module: nn.Module, path: list[str], name: str, buffer: Tensor) -> nn.Module:
    if hasattr(module, "_hf_hook"):
        raise AnatomyError(
            f"{type(module).__name__} masks in a buffer of its own and is spread over devices by accelerate, so the "
            f'sweep cannot run it again. Load on one device, or trace with engine="passes".'
        )
    twin = copy.copy(module)
    if "forward" in vars(module):
        twin.__dict__["forward"] = MethodType(_unbound_forward(module), twin)
    if path:
        child = _with_buffer(module.get_submodule(path[0]), path[1:], name, buffer)
        twin.__dict__["_modules"] = {**module._modules, path[0]: child}
    else:
        twin.__dict__["_buffers"] = {**module._buffers, name: buffer}
    return twin


def _unbound_forward(module: nn.Module) -> Callable[..., Any]:
    """The function behind a forward that stands in the module itself: nnsight's, or one that replaced the class's."""
    forward = vars(module)["forward"]
    if isinstance(forward, Controller):
        forward = forward.state.original  # which takes the module, unless it wraps a function that does not
        if forward.__module__ != Controller.__module__:
            return forward
    elif inspect.ismethod(forward) and forward.__self__ is module:
        return forward.__func__
    name = type(module).__name__
    raise AnatomyError(
        f"{name} masks in a buffer of its own, and its forward was replaced by a function that does not take the "
        f"module, so the sweep cannot run it with another mask. Before tracer.load write module.forward = "
        f'types.MethodType(function, module), the function calling {name}.forward(module, ...); or engine="passes".'
    )
