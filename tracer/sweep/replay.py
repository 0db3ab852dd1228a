"""Run the model's own blocks again on some tokens of a recorded pass.

`Recording.run_block` calls a block with other hidden states, at chosen positions; keys and values of the
tokens before them are taken from the recording. So nothing of an architecture is written twice: rotary
tables, norms, gates and caches stay the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tracer.anatomy import SubLayer
from tracer.anatomy.hidden import hidden_of
from tracer.errors import AnatomyError
from tracer.model import LanguageModel
from tracer.sweep import masks
from tracer.sweep.hooks import rows_that_run

CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")
_BY_ROW = ("hidden_states", "position_ids", "position_embeddings", "alibi")


@dataclass
class Recording:
    """What one forward pass of `model` computed. Tensors are [row, token, d_model], one a layer.

    Attributes:
        inputs, outputs: of each block.
        added: what each sub-layer added to the residual stream.
        keys, values: of each attention, [row, kv_head, token, head].
        arguments: what each block was called with, by name.
        visible: which tokens each token sees in each layer, bool [row or 1, token, token].
        bias: what each layer's mask adds where it sees, [row or 1, head or 1, token, token]; None: nothing.
        blocks: each block, without a mask of its own.
        matrix_inputs: what came into each of the `matrices` that were asked for, [row, token, width].
    """

    model: LanguageModel
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    added: dict[SubLayer, list[Tensor]] = field(default_factory=lambda: {"attn": [], "mlp": []})
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    arguments: list[dict[str, Any]] = field(default_factory=list)
    visible: list[Tensor] = field(default_factory=list)
    bias: list[Tensor | None] = field(default_factory=list)
    blocks: list[nn.Module] = field(default_factory=list)
    matrix_inputs: list[Tensor] = field(default_factory=list)

    def attention_mask(self, layer: int, seen: Tensor, positions: Tensor, key_positions: Tensor) -> Tensor:
        """The mask for `run_block`: what the recorded one adds where `seen`, the most negative number elsewhere.

        Args:
            layer: which block.
            seen: bool [row or 1, query, key].
            positions: the token position of each query, [query] or [row, query].
            key_positions: of each key, those put before the block's own included, [key] or [row, key].
        """
        bias = self.bias[layer]
        bias = None if bias is None else masks.at(bias, positions, key_positions)
        return masks.additive(seen, bias, self.keys[layer].dtype)

    def of_rows(self, chosen: Tensor) -> Recording:
        """What was recorded of some rows, by number."""
        some = partial(_of_rows, len(self.inputs[0]), chosen)
        return Recording(
            self.model,
            some(self.inputs),
            some(self.outputs),
            {kind: some(added) for kind, added in self.added.items()},
            some(self.keys),
            some(self.values),
            [
                {name: some(value) if name in _BY_ROW else value for name, value in arguments.items()}
                for arguments in self.arguments
            ],
            some(self.visible),
            some(self.bias),
            self.blocks,
            some(self.matrix_inputs),
        )

    def run_block(
        self,
        layer: int,
        hidden: Tensor,
        *,
        positions: Tensor,
        key_positions: Tensor,
        mask: Tensor,
        keys: Tensor,
        values: Tensor,
        complete: bool = False,
    ) -> Tensor:
        """Block `layer` on `hidden` [row, query, d_model], with `keys` and `values` put before its own.

        Args:
            layer: which block.
            hidden: its input.
            positions: the token position of each query, [query] or [row, query].
            key_positions: of each key, the prefix first, [prefix + query] or [row, prefix + query].
            mask: from `attention_mask`, [row or 1, head or 1, query, prefix + query].
            keys: of the prefix, [row, kv_head, prefix, head].
            values: likewise.
            complete: `keys` and `values` are all there are: the queries' own are among them.
        """
        cache = _Complete(keys, values) if complete else _Prefix(keys, values)
        return hidden_of(self._call(layer, hidden, positions, cache, mask, key_positions))

    def keys_and_values(self, layer: int, hidden: Tensor, *, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What block `layer` would put into its cache, [row, kv_head, query, head]; nothing above that is run."""
        cache = _Catch()
        try:
            self._call(layer, hidden, positions, cache)
        except _Caught:
            return cache.caught
        raise AnatomyError(f"Block {layer} of {self.model.name} did not use its key/value cache.")

    def _call(
        self,
        layer: int,
        hidden: Tensor,
        positions: Tensor,
        cache: object,
        mask: Tensor | None = None,
        key_positions: Tensor | None = None,
    ) -> Any:
        try:
            arguments = self._arguments(layer, hidden, positions, cache, mask, key_positions)
            rows_that_run.set(len(hidden))
            return self.blocks[layer](**arguments)
        except AnatomyError:
            raise
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # it wants what it had in a whole pass
            raise AnatomyError(
                f"{type(self.blocks[layer]).__name__} of {self.model.name} cannot be run again on some of its tokens "
                f'({type(error).__name__}: {error}). Trace with engine="passes".'
            ) from error

    def _arguments(
        self,
        layer: int,
        hidden: Tensor,
        positions: Tensor,
        cache: object,
        mask: Tensor | None,
        key_positions: Tensor | None,
    ) -> dict[str, Any]:
        """What the block was called with, for these tokens."""
        arguments = dict(self.arguments[layer])
        for name, value in arguments.items():
            if name == "hidden_states":
                arguments[name] = hidden
            elif name in CACHE_NAMES:
                arguments[name] = cache
            elif name == "attention_mask":
                arguments[name] = None if mask is None else mask.expand(len(hidden), -1, -1, -1)  # XGLM insists
            elif name == "position_ids" and value is not None:
                arguments[name] = _at(value, positions)
            elif name == "position_embeddings" and value is not None:
                arguments[name] = tuple(_at(table, positions) for table in value)
            elif name == "alibi" and value is not None and key_positions is not None:
                arguments[name] = masks.alibi_at(value, key_positions, len(self.inputs[layer]), len(hidden))
        return arguments


class _Prefix:
    """As much of a key/value cache as an attention layer calls: `update` puts a fixed prefix in front."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat((self.keys, keys), dim=-2), torch.cat((self.values, values), dim=-2)


@dataclass
class _Complete:
    """A cache that holds the queries' own keys and values already."""

    keys: Tensor
    values: Tensor

    def update(self, _keys: Tensor, _values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class _Caught(Exception):  # noqa: N818 - no error: it ends a block early
    pass


class _Catch:
    """A cache that ends the block once it has its keys and values."""

    caught: tuple[Tensor, Tensor]

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.caught = keys, values
        raise _Caught


def _of_rows(n_rows: int, chosen: Tensor, recorded: Any) -> Any:
    """The chosen rows of tensors that have one entry, or one a head (Bloom's alibi), for each recorded row."""
    if isinstance(recorded, list | tuple):
        return type(recorded)(_of_rows(n_rows, chosen, one) for one in recorded)
    if recorded is None or len(recorded) % n_rows:
        return recorded
    each = recorded.unflatten(0, (n_rows, -1))
    return each[chosen.to(each.device)].flatten(0, 1)


def _at(table: Tensor, positions: Tensor) -> Tensor:
    """The entries of a position table [row or 1, token, ...] at `positions`, with a leading row axis."""
    table = table.to(positions.device)
    if positions.dim() == 1:
        return table[:1, positions]
    each = torch.arange(len(positions), device=positions.device) if len(table) > 1 else positions.new_zeros(1)
    return table[each[:, None], positions]
