"""The part of some requests' prompts that a change at their subjects' last tokens can reach.

A delta is added at one place (`Part`) of block `layer`, at the last token of the subject. Blocks below
and tokens before are not changed by it: they are recorded once, and only the tokens from the subject's
last one on are run again, through the blocks above; in block `layer` itself, only that one token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from editing.locate_then_edit.rows import Rows
from tracer.model import LanguageModel
from tracer.sweep.hooks import output_changed
from tracer.sweep.recording import record
from tracer.sweep.replay import Recording

Part = Literal["mlp", "attn", "block"]
KLPosition = Literal["lookup", "last"]


class Suffix:
    """Answers of some requests as a function of what is added at their subjects' last tokens.

    Attributes:
        parts: where: the output of the MLP's or the attention's last matrix, or of the block.
    """

    def __init__(
        self,
        model: LanguageModel,
        layer: int,
        rows: Rows,
        parts: Sequence[Part] = ("mlp",),
        *,
        essence_at: KLPosition = "lookup",
        run: Recording | None = None,
    ) -> None:
        """Records the rows, or takes the recording `run` of them; essence prompts are read where `essence_at` says."""
        self.model, self.layer, self.rows, self.parts = model, layer, rows, tuple(parts)
        with torch.no_grad():
            self.run = run or record(model, rows.ids, attention_mask=rows.attention_mask)
        self.each = torch.arange(len(rows.ids), device=rows.ids.device)
        n_query = int((rows.attention_mask.sum(1) - rows.lookup).max())
        self._whole = self._stage(n_query)
        self._first = self._stage(1)
        self.essence_at: KLPosition = essence_at
        ends = rows.lookup if essence_at == "lookup" else rows.attention_mask.sum(1) - 1
        self.read_rows = torch.cat((rows.essence, rows.target_rows))
        self.read_at = torch.cat((ends[rows.essence], rows.target_places)) - rows.lookup[self.read_rows]

    def of_some(self, contexts: Sequence[int]) -> Suffix:
        """The same of some contexts, by number, without another pass."""
        if len(contexts) == self.rows.each - 1:
            return self
        run = self.run.of_rows(self.rows.numbers(contexts))
        some = self.rows.of_some(contexts)
        return Suffix(self.model, self.layer, some, self.parts, essence_at=self.essence_at, run=run)

    @cached_property
    def initial(self) -> Tensor:
        """What is there without a delta, at the bare prompt, [request, part, d_model]."""
        if self.parts == ("block",):
            found = [self.run.outputs[self.layer][self.each, self.rows.lookup]]
        else:
            kept: dict[nn.Module, Tensor] = {}

            def keep(matrix: nn.Module) -> Callable[[Tensor], Tensor]:
                return lambda output: kept.setdefault(matrix, output)

            matrices = [self._matrix(part) for part in self.parts]
            with torch.no_grad():
                self._run_first({matrix: keep(matrix) for matrix in matrices})
            found = [kept[matrix][:, 0] for matrix in matrices]
        return torch.stack([self.rows.of_contexts(of_rows)[:, 0] for of_rows in found], dim=1)

    def logits(self, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the targets, [target, vocab], and at the essence prompts, [request, vocab].

        Args:
            deltas: added in every row of a request, [request, part, d_model].
        """
        positions = self._whole[0]
        recorded = self.run.outputs[self.layer][self.each[:, None], positions]
        first = self._changed(deltas.repeat_interleave(self.rows.each, 0))
        hidden = torch.cat((first[:, None], recorded[:, 1:]), dim=1)
        for at in range(self.layer + 1, self.model.n_layers):
            hidden = self._block(at, hidden, self._whole)
        found = self.model.anatomy.unembed(hidden[self.read_rows, self.read_at])
        found = found if found.dtype == torch.float64 else found.float()
        return found[self.rows.n_requests :], found[: self.rows.n_requests]

    def _changed(self, deltas: Tensor) -> Tensor:
        """The block's output at the lookup of each row, deltas [row, part, d_model] added; [row, d_model]."""
        if self.parts == ("block",):
            output = self.run.outputs[self.layer][self.each, self.rows.lookup]
            return output + deltas[:, 0].to(output.dtype)
        changes = {
            self._matrix(part): lambda output, n=n: output + deltas[:, n, None].to(output.dtype)
            for n, part in enumerate(self.parts)
        }
        return self._run_first(changes)

    def _run_first(self, changes: dict[nn.Module, Callable[[Tensor], Tensor]]) -> Tensor:
        """Block `layer` at the lookup of each row alone, [row, d_model]."""
        below = self.run.inputs[self.layer][self.each, self.rows.lookup][:, None]
        with ExitStack() as hooks:
            for matrix, change in changes.items():
                hooks.enter_context(output_changed(matrix, change))
            return self._block(self.layer, below, self._first)[:, 0]

    def _matrix(self, part: Part) -> nn.Module:
        anatomy = self.model.anatomy
        return anatomy.value_matrix(self.layer) if part == "mlp" else anatomy.head_matrix(self.layer)

    def _block(self, layer: int, hidden: Tensor, stage: tuple[Tensor, Tensor, list[Tensor]]) -> Tensor:
        positions, key_positions, allowed = stage
        prefix = key_positions.shape[1] - positions.shape[1]
        return self.run.run_block(
            layer,
            hidden,
            positions=positions,
            key_positions=key_positions,
            mask=self.run.attention_mask(layer, allowed[layer], positions, key_positions),
            keys=self.run.keys[layer][:, :, :prefix],
            values=self.run.values[layer][:, :, :prefix],
        )

    def _stage(self, n_query: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """`n_query` tokens of each row from its lookup on.

        Returns:
            their positions [row, query]; those of all keys, [row, prefix + query]; and for each layer who
            sees whom, [row, query, prefix + query].
        """
        rows, device = self.rows, self.rows.ids.device
        # Queries past a row's end are padding: they read the last token's place, and nothing reads them.
        positions = (rows.lookup[:, None] + torch.arange(n_query, device=device)).clamp(max=rows.ids.shape[1] - 1)
        prefix = torch.arange(int(rows.lookup.max()), device=device)
        before = prefix < rows.lookup[:, None, None]
        causal = torch.ones(n_query, n_query, dtype=torch.bool, device=device).tril()
        own = torch.eye(n_query, dtype=torch.bool, device=device)
        allowed = []
        for seen in self.run.visible:
            seen = seen.expand(len(rows.ids), -1, -1)[self.each[:, None], positions]  # [row, query, token]
            among = seen.gather(2, positions[:, None, :].expand(-1, n_query, -1))
            allowed.append(torch.cat((seen[:, :, : len(prefix)] & before, (among & causal) | own), dim=2))
        return positions, torch.cat((prefix.expand(len(rows.ids), -1), positions), dim=1), allowed
