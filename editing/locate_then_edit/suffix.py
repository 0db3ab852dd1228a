"""The part of some requests' prompts that a change at their subjects' last tokens can reach.

A delta is added at one place (`Part`) of block `layer`, at the last token of the subject. Blocks below
and tokens before are not changed by it: they are recorded once, and only the tokens from the subject's
last one on are run again, through the blocks above; in block `layer` itself, only that one token. The
essence prompts, which are read at that token, are run by themselves: they have no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from editing.locate_then_edit.rows import Rows
from editing.locate_then_edit.strand import Strand, longest
from tracer.model import LanguageModel

Part = Literal["mlp", "attn", "block"]
KLPosition = Literal["lookup", "last"]


class Suffix:
    """Answers of some requests as a function of what is added at their subjects' last tokens.

    Attributes:
        rows: the requests'.
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
        strands: tuple[Strand, Strand] | None = None,
    ) -> None:
        """Records the rows, or takes the `strands` of their contexts and of their essence prompts.

        Essence prompts are read where `essence_at` says.
        """
        self.model, self.layer, self.rows, self.parts = model, layer, rows, tuple(parts)
        self.essence_at: KLPosition = essence_at
        self._contexts, self._essence = strands or self._recorded()
        ends = rows.attention_mask.sum(1) - 1 if essence_at == "last" else rows.lookup
        self._essence_end = (ends - rows.lookup)[rows.essence]
        self._target_rows = rows.target_rows - rows.target_rows // rows.each  # among the contexts alone
        self._target_places = rows.target_places - rows.lookup[rows.target_rows]

    def of_some(self, contexts: Sequence[int]) -> Suffix:
        """The same of some contexts, by number, without another pass."""
        if len(contexts) == self.rows.each - 1:
            return self
        some, device = self.rows.of_some(contexts), self.rows.ids.device
        first = torch.arange(self.rows.n_requests, device=device)[:, None] * (self.rows.each - 1)
        chosen = (first + torch.tensor(contexts, device=device)).flatten()
        strands = self._contexts.of_rows(chosen, _longest_context(some)), self._essence
        return Suffix(self.model, self.layer, some, self.parts, essence_at=self.essence_at, strands=strands)

    @cached_property
    def initial(self) -> Tensor:
        """What is there without a delta, at the bare prompt, [request, part, d_model]."""
        if self.parts == ("block",):
            found = [self._contexts.recorded_at_lookup(self.layer)]
        else:
            kept: dict[nn.Module, Tensor] = {}

            def keep(matrix: nn.Module) -> Callable[[Tensor], Tensor]:
                return lambda output: kept.setdefault(matrix, output)

            matrices = [self._matrix(part) for part in self.parts]
            with torch.no_grad():
                self._contexts.at_lookup(self.layer, {matrix: keep(matrix) for matrix in matrices})
            found = [kept[matrix][:, 0] for matrix in matrices]
        return torch.stack([of_rows[:: self.rows.each - 1] for of_rows in found], dim=1)

    def logits(self, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the targets, [target, vocab], and at the essence prompts, [request, vocab].

        Args:
            deltas: added in every row of a request, [request, part, d_model].
        """
        answers = self._hidden(self._contexts, deltas.repeat_interleave(self.rows.each - 1, 0))
        essence = self._hidden(self._essence, deltas)
        read = answers[self._target_rows, self._target_places], essence[self._essence.each, self._essence_end]
        found = self.model.anatomy.unembed(torch.cat(read))
        found = found if found.dtype == torch.float64 else found.float()
        return found[: len(self._target_rows)], found[len(self._target_rows) :]

    def _hidden(self, strand: Strand, deltas: Tensor) -> Tensor:
        """The last block's output with deltas [row, part, d_model] added at the lookups, [row, query, d_model]."""
        if self.parts == ("block",):
            changed = strand.recorded_at_lookup(self.layer)
            changed = changed + deltas[:, 0].to(changed.dtype)
        else:
            changed = strand.at_lookup(
                self.layer,
                {
                    self._matrix(part): lambda output, n=n: output + deltas[:, n, None].to(output.dtype)
                    for n, part in enumerate(self.parts)
                },
            )
        return strand.above(self.layer, changed)

    def _recorded(self) -> tuple[Strand, Strand]:
        rows, model = self.rows, self.model
        n_essence = 1 if self.essence_at == "lookup" else None
        strands = []
        for which, n_query in ((rows.context_rows, None), (rows.essence, n_essence)):
            strand = Strand.recorded(model, rows.ids[which], rows.attention_mask[which], rows.lookup[which], n_query)
            strands.append(strand)
        return strands[0], strands[1]

    def _matrix(self, part: Part) -> nn.Module:
        anatomy = self.model.anatomy
        return anatomy.value_matrix(self.layer) if part == "mlp" else anatomy.head_matrix(self.layer)


def _longest_context(rows: Rows) -> int:
    return longest(rows.attention_mask[rows.context_rows], rows.lookup[rows.context_rows])
