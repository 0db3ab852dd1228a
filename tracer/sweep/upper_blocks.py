"""The blocks from one layer up, run again on some tokens of a recorded pass.

What an edit of layer l changes lies in the blocks l, l + 1, ... and in the tokens from the first changed
one on. Everything below and before comes from the recording.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from tracer.sweep.replay import Recording


@dataclass(frozen=True, eq=False)
class UpperBlocks:
    """Blocks `layer` and above, on the tokens [first, stop) of every row.

    Attributes:
        run: the recording, its own states dropped.
        layer: the lowest block that is run.
        hidden: what enters it, [row, query, d_model].
        positions: of the queries, [query] or [row, query].
        key_positions: of the tokens before `stop`, [key] or [row, key].
        masks: one a block from `layer` on, [row or 1, head or 1, query, key].
        prefix: keys and values of the tokens before `first`, one pair a block from `layer` on.
    """

    run: Recording
    layer: int
    hidden: Tensor
    positions: Tensor
    key_positions: Tensor
    masks: Sequence[Tensor]
    prefix: Sequence[tuple[Tensor, Tensor]]

    def outputs(self) -> Tensor:
        """What leaves the last block, [row, query, d_model], with the weights and hooks of now."""
        hidden = self.hidden
        for place, (mask, (keys, values)) in enumerate(zip(self.masks, self.prefix, strict=True)):
            hidden = self.run.run_block(
                self.layer + place,
                hidden,
                positions=self.positions,
                key_positions=self.key_positions,
                mask=mask,
                keys=keys,
                values=values,
            )
        return hidden


def upper_blocks(
    run: Recording, layer: int, *, first: int, stop: int, copies: int = 1, lengths: Tensor | None = None
) -> UpperBlocks:
    """Prepares a run of the blocks from `layer` up.

    Args:
        run: the recorded pass.
        layer: the lowest block to run.
        first: the first token that may change, in every row.
        stop: the token after the last one of interest.
        copies: how many rows to run for a recording of one row.
        lengths: tokens of each row, where rows are padded, [row].
    """
    rows = len(run.inputs[layer])
    hidden, tokens = run.inputs[layer][:, first:stop], torch.arange(stop, device=run.inputs[layer].device)
    if lengths is not None:  # a padding token may be NaN (it sees nothing), and 0 times NaN is NaN
        hidden = hidden.masked_fill((tokens[first:] >= lengths[:, None])[..., None], 0)
    key_positions = tokens if rows == 1 else tokens.expand(rows, -1)
    positions = key_positions[..., first:]
    own = tokens == tokens[first:, None]
    masks, prefix = [], []
    for at in range(layer, run.model.n_layers):
        seen = run.visible[at][:, first:stop, :stop] | own
        masks.append(run.attention_mask(at, seen, positions, key_positions))
        stores = (store[:, :, :first] for store in (run.keys[at], run.values[at]))
        keys, values = (store.expand(rows * copies, -1, -1, -1).clone() for store in stores)
        prefix.append((keys, values))
    hidden = hidden.expand(rows * copies, -1, -1).clone()
    return UpperBlocks(_without_states(run), layer, hidden, positions, key_positions, masks, prefix)


def _without_states(run: Recording) -> Recording:
    """The recording as far as running its blocks again needs it: no hidden states, keys or values."""
    arguments = [
        {name: None if name == "hidden_states" or isinstance(value, Cache) else value for name, value in each.items()}
        for each in run.arguments
    ]
    inputs = [hidden.new_empty(len(hidden), 0) for hidden in run.inputs]
    return dataclasses.replace(
        run, inputs=inputs, outputs=[], added={}, keys=[], values=[], visible=[], bias=[], arguments=arguments
    )
