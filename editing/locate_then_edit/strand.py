"""Some prompts from one token each on: what a change there can reach, run again block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tracer.model import LanguageModel
from tracer.sweep.hooks import output_changed
from tracer.sweep.recording import record
from tracer.sweep.replay import Recording

Changes = Mapping[nn.Module, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class _Window:
    """Some tokens of each row.

    Attributes:
        positions: theirs, [row, query].
        key_positions: of all keys, [row, prefix + query].
        allowed: of each layer, who sees whom, [row, query, prefix + query].
    """

    positions: Tensor
    key_positions: Tensor
    allowed: list[Tensor]


class Strand:
    """Rows of a recording from their lookups on.

    Attributes:
        run: the recording of these rows.
        lookup: the first token of each that is run again, [row].
    """

    def __init__(self, run: Recording, lookup: Tensor, n_query: int) -> None:
        """Takes `n_query` tokens of each row; shorter rows are padded, and nothing reads the padding."""
        self.run, self.lookup = run, lookup
        self.each = torch.arange(len(lookup), device=lookup.device)
        self._whole, self._first = self._window(n_query), self._window(1)

    @classmethod
    def recorded(
        cls, model: LanguageModel, ids: Tensor, attention_mask: Tensor, lookup: Tensor, n_query: int
    ) -> Strand:
        """Runs `ids` [row, token] once."""
        width = int(attention_mask.sum(1).max())
        with torch.no_grad():
            run = record(model, ids[:, :width], attention_mask=attention_mask[:, :width])
        return cls(run, lookup, n_query)

    def of_rows(self, chosen: Tensor, n_query: int) -> Strand:
        """The same of some rows, by number, without another pass."""
        return Strand(self.run.of_rows(chosen), self.lookup[chosen], n_query)

    def at_lookup(self, layer: int, changes: Changes) -> Tensor:
        """What block `layer` puts out at each lookup, outputs of modules in it changed; [row, d_model]."""
        below = self.run.inputs[layer][self.each, self.lookup][:, None]
        with ExitStack() as hooks:
            for module, change in changes.items():
                hooks.enter_context(output_changed(module, change))
            return self._block(layer, below, self._first)[:, 0]

    def recorded_at_lookup(self, layer: int) -> Tensor:
        """What block `layer` put out at each lookup, [row, d_model]."""
        return self.run.outputs[layer][self.each, self.lookup]

    def above(self, layer: int, at_lookup: Tensor) -> Tensor:
        """The last block's output, [row, query, d_model], where block `layer` puts out `at_lookup` [row, d_model]."""
        recorded = self.run.outputs[layer][self.each[:, None], self._whole.positions]
        hidden = torch.cat((at_lookup[:, None], recorded[:, 1:]), dim=1)
        for higher in range(layer + 1, len(self.run.blocks)):
            hidden = self._block(higher, hidden, self._whole)
        return hidden

    def _block(self, layer: int, hidden: Tensor, window: _Window) -> Tensor:
        positions, key_positions = window.positions, window.key_positions
        prefix = key_positions.shape[1] - positions.shape[1]
        return self.run.run_block(
            layer,
            hidden,
            positions=positions,
            key_positions=key_positions,
            mask=self.run.attention_mask(layer, window.allowed[layer], positions, key_positions),
            keys=self.run.keys[layer][:, :, :prefix],
            values=self.run.values[layer][:, :, :prefix],
        )

    def _window(self, n_query: int) -> _Window:
        lookup, n_tokens = self.lookup, self.run.inputs[0].shape[1]
        device = lookup.device
        # Queries past a row's end are padding: they read the last token's place, and nothing reads them.
        positions = (lookup[:, None] + torch.arange(n_query, device=device)).clamp(max=n_tokens - 1)
        prefix = torch.arange(int(lookup.max()), device=device)
        before = prefix < lookup[:, None, None]
        causal = torch.ones(n_query, n_query, dtype=torch.bool, device=device).tril()
        own = torch.eye(n_query, dtype=torch.bool, device=device)
        allowed = []
        for seen in self.run.visible:
            seen = seen.expand(len(lookup), -1, -1)[self.each[:, None], positions]  # [row, query, token]
            among = seen.gather(2, positions[:, None, :].expand(-1, n_query, -1))
            allowed.append(torch.cat((seen[:, :, : len(prefix)] & before, (among & causal) | own), dim=2))
        key_positions = torch.cat((prefix.expand(len(lookup), -1), positions), dim=1)
        return _Window(positions, key_positions, allowed)
