"""The model's blocks on packed rows: each draw's rows start from its own rows of the recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tracer.site import Direction
from tracer.sweep.packing import Packing
from tracer.sweep.replay import Recording


@dataclass(frozen=True)
class DrawRows:
    """A recording's rows, by draw: a clean row for each fact, then a corrupted row for each draw."""

    n_facts: int
    samples: int
    direction: Direction

    def base(self, draws: Tensor) -> Tensor:
        """The rows that these draws' maps start from: the corrupted ones, to be restored."""
        return self.n_facts + draws if self.direction == "restore" else draws // self.samples

    def source(self, draws: Tensor) -> Tensor:
        """The rows that sites are set from: the clean ones of these draws' facts."""
        return draws // self.samples if self.direction == "restore" else self.n_facts + draws


@dataclass(frozen=True)
class PackedBlocks:
    """Blocks as functions of packed rows [row, pair, d_model] and, for each row, the index of its draw.

    Attributes:
        recorded: clean and corrupted rows.
        rows: which of them are a draw's.
    """

    recorded: Recording
    rows: DrawRows

    def run(self, layer: int, packing: Packing, draws: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Block `layer` as a function of packed rows [row, pair, d_model] and, for each row, the index of its draw."""
        keys, values, mask = self._context(layer, packing, draws)

        def block(hidden: Tensor, which: Tensor) -> Tensor:
            """Its output, [row, pair, d_model]."""
            return self.recorded.run_block(
                layer,
                hidden,
                positions=packing.computed,
                key_positions=packing.key_positions,
                mask=mask,
                keys=keys[which],
                values=values[which],
            )

        return block

    def run_last(self, packing: Packing, draws: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The last block, as `run`, but for the positions that the answer is read from: [row, last, d_model]."""
        layer, last = self.recorded.model.n_layers - 1, packing.last
        keys, values, mask = self._context(layer, packing, draws)

        def block(hidden: Tensor, which: Tensor) -> Tensor:
            """Its output where the answer is read, [row, last, d_model]."""
            own = self.recorded.keys_and_values(layer, hidden, positions=packing.computed)
            whole = [torch.cat((prefix[which], mine), dim=-2) for prefix, mine in zip((keys, values), own, strict=True)]
            return self.recorded.run_block(
                layer,
                hidden[:, last],
                positions=packing.computed[last],
                key_positions=packing.key_positions,
                mask=mask[..., last, :],
                keys=whole[0],
                values=whole[1],
                complete=True,
            )

        return block

    def _context(self, layer: int, packing: Packing, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of tokens 0 .. T-2 when corrupted, then of `clean_token` when clean; the mask."""
        stores = []
        for store in (self.recorded.keys[layer], self.recorded.values[layer]):
            prefix = store[self.rows.base(draws), :, :-1]
            if packing.clean_token is not None:
                clean = store[self.rows.source(draws), :, packing.clean_token : packing.clean_token + 1]
                prefix = torch.cat((prefix, clean), dim=2)
            stores.append(prefix)
        seen = packing.mask(self.recorded.visible[layer][0])[None]
        mask = self.recorded.attention_mask(layer, seen, packing.computed, packing.key_positions)
        return stores[0], stores[1], mask
