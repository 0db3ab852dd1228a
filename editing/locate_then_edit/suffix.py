"""The part of some requests' prompts that a change at their subjects' last tokens can reach.

A delta is added at one place (`Part`) of block `layer`, at the last token of the subject. Blocks below
and tokens before are not changed by it: they are recorded once, and only the tokens from the subject's
last one on are run again, through the blocks above; in block `layer` itself, only that one token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from editing.locate_then_edit.rows import Rows
from editing.locate_then_edit.strand import Strand
from editing.padding import call_tokens
from tracer.model import LanguageModel
from tracer.precision import wide

Part = Literal["mlp", "attn", "block"]
KLPosition = Literal["lookup", "last"]


class Suffix:
    """Answers of some requests as a function of what is added at their subjects' last tokens.

    Attributes:
        rows: the requests'.
        parts: where: the output of the MLP's or the attention's last matrix, or of the block.
        strands: what is run again, with the numbers of the rows in each: all rows, or first the contexts'.
    """

    def __init__(
        self,
        model: LanguageModel,
        layer: int,
        rows: Rows,
        parts: Sequence[Part] = ("mlp",),
        *,
        essence_at: KLPosition = "lookup",
        strands: Sequence[tuple[Tensor, Strand]] = (),
    ) -> None:
        """Records the rows, or takes their `strands`; essence prompts are read where `essence_at` says."""
        self.model, self.layer, self.rows, self.parts = model, layer, rows, tuple(parts)
        self.essence_at: KLPosition = essence_at
        self.strands = strands or self._recorded()
        ends = rows.lookup if essence_at == "lookup" else rows.attention_mask.sum(1) - 1
        self._read_rows = torch.cat((rows.target_rows, rows.essence))
        self._read_at = torch.cat((rows.target_places, ends[rows.essence])) - rows.lookup[self._read_rows]

    def of_some(self, contexts: Sequence[int]) -> Suffix:
        """The same of some contexts, by number, without another pass."""
        if len(contexts) == self.rows.each - 1:
            return self
        some, place = self.rows.of_some(contexts), self._places(self.rows.numbers(contexts))
        strands = []
        for numbers, strand in self.strands:
            kept = place[numbers] >= 0
            left = place[numbers[kept]]
            strands.append((left, strand if kept.all() else strand.of_rows(kept.nonzero()[:, 0], _queries(some, left))))
        return Suffix(self.model, self.layer, some, self.parts, essence_at=self.essence_at, strands=strands)

    @cached_property
    def initial(self) -> Tensor:
        """What is there without a delta, at the bare prompt, [request, part, d_model]."""
        numbers, strand = self.strands[0]
        if self.parts == ("block",):
            found = [strand.recorded_at_lookup(self.layer)]
        else:
            kept: dict[nn.Module, Tensor] = {}

            def keep(matrix: nn.Module) -> Callable[[Tensor], Tensor]:
                return lambda output: kept.setdefault(matrix, output)

            matrices = [self._matrix(part) for part in self.parts]
            with torch.no_grad():
                strand.at_lookup(self.layer, {matrix: keep(matrix) for matrix in matrices})
            found = [kept[matrix][:, 0] for matrix in matrices]
        return torch.stack([of_rows[numbers % self.rows.each == 0] for of_rows in found], dim=1)

    def logits(self, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the targets, [target, vocab], and at the essence prompts, [request, vocab].

        Args:
            deltas: added in every row of a request, [request, part, d_model].
        """
        read = []
        for numbers, strand in self.strands:
            place = self._places(numbers)[self._read_rows]
            hidden = self._hidden(strand, deltas[numbers // self.rows.each])
            read.append(hidden[place[place >= 0], self._read_at[place >= 0]])
        found = self.model.anatomy.unembed(torch.cat(read))
        found = wide(found)
        return found[: len(self.rows.target_rows)], found[len(self.rows.target_rows) :]

    def _hidden(self, strand: Strand, deltas: Tensor) -> Tensor:
        """The last block's output with deltas [row, part, d_model] added at the lookups, [row, query, d_model]."""
        if self.parts == ("block",):
            changed = strand.recorded_at_lookup(self.layer)
            changed = changed + deltas[:, 0].to(changed.dtype)
        else:
            changes = {
                self._matrix(part): lambda output, n=n: output + deltas[:, n, None].to(output.dtype)
                for n, part in enumerate(self.parts)
            }
            changed = strand.at_lookup(self.layer, changes)
        return strand.above(self.layer, changed)

    def _recorded(self) -> list[tuple[Tensor, Strand]]:
        """One strand, or two where the padding of essence prompts would cost more than running them apart."""
        rows, each = self.rows, torch.arange(len(self.rows.ids), device=self.rows.ids.device)
        padding = rows.n_requests * (_queries(rows, each) - 1)
        apart = self.essence_at == "lookup" and padding > call_tokens(self.model.device) / 2
        parts = [rows.context_rows, rows.essence] if apart else [each]
        strands = []
        for numbers in parts:
            n_query = 1 if apart and numbers is parts[1] else _queries(rows, numbers)
            ids, mask = rows.ids[numbers], rows.attention_mask[numbers]
            strands.append((numbers, Strand.recorded(self.model, ids, mask, rows.lookup[numbers], n_query)))
        return strands

    def _places(self, numbers: Tensor) -> Tensor:
        """Of each row, its place among the rows with these numbers; -1: it is not there."""
        place = torch.full((len(self.rows.ids),), -1, device=numbers.device)
        place[numbers] = torch.arange(len(numbers), device=numbers.device)
        return place

    def _matrix(self, part: Part) -> nn.Module:
        anatomy = self.model.anatomy
        return anatomy.value_matrix(self.layer) if part == "mlp" else anatomy.head_matrix(self.layer)


def _queries(rows: Rows, numbers: Tensor) -> int:
    """Tokens from the lookup on of the row that has most of them."""
    return int((rows.attention_mask.sum(1) - rows.lookup)[numbers].max())
