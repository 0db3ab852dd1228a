"""One walk up the layers: rows join when their layer is reached, and climb to the answer together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tracer.answer import values_at
from tracer.model.parallel import Check
from tracer.sweep.hold import Hold
from tracer.sweep.packing import Packing, Row

if TYPE_CHECKING:
    from tracer.sweep.batch_sweep import BatchSweep

Join = Callable[[Row, Packing, Tensor, Tensor | None], Tensor]


class Staircase:
    """The rows that have joined so far, for some draws: states [row, draw, pair, d_model]."""

    def __init__(
        self,
        sweep: BatchSweep,
        packing: Packing,
        draws: Tensor,
        n_rows: int,
        hold: Hold | None,
        held_rows: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.sweep, self.packing, self.draws, self.hold = sweep, packing, draws, hold
        self.rows: list[Row] = []
        d_model, like = sweep.model.d_model, sweep.run.outputs[0]
        self.states = like.new_empty((n_rows, len(draws), len(packing), d_model))
        self.final = like.new_empty((n_rows, len(draws), len(packing.last), d_model))
        self.which = torch.arange(len(draws), device=draws.device).repeat(n_rows)
        self.held_rows = None if held_rows is None else held_rows(draws).repeat(n_rows)

    def climb(self, rows: list[Row], join: Join, check: Check) -> None:
        """From layer 0 to the top; a row joins just below its first block."""
        n_layers = self.sweep.model.n_layers
        for layer in range(n_layers + 1):
            for row in rows:
                if row.start == layer:
                    below = self.states[self.rows.index(row.parent)] if row.parent else None
                    self.states[len(self.rows)] = join(row, self.packing, self.draws, below)
                    self.rows.append(row)
            if layer == n_layers:  # these joined above the last block
                for at in (n for n, row in enumerate(self.rows) if row.start == n_layers):
                    self.final[at] = self.states[at][:, self.packing.last]
            elif self.rows:
                self._run(layer, check)

    def _run(self, layer: int, check: Check) -> None:
        """One block over all rows; the last one goes from `states` to `final`."""
        packing, is_last = self.packing, layer == self.sweep.model.n_layers - 1
        states, target = self.states.flatten(0, 1), (self.final if is_last else self.states).flatten(0, 1)
        block = self.sweep.blocks.run_last if is_last else partial(self.sweep.blocks.run, layer)
        run = block(packing, self.draws)
        place = packing.held_last if is_last else packing.held
        tokens = (packing.computed[packing.last] if is_last else packing.computed)[place]
        for calls, held in self._calls(layer):
            check()
            with ExitStack() as stack:
                if held and len(tokens) and self.hold is not None and self.held_rows is not None:
                    stack.enter_context(self.hold.writing(layer, self.held_rows[calls], tokens, place.start))
                target[calls] = run(states[calls], self.which[calls])

    def _calls(self, layer: int) -> Iterator[tuple[slice, bool]]:
        """Slices of `states` with its first two axes flattened, about `packed_tokens` tokens each, and if they hold."""
        together = max(1, self.sweep.budget.packed_tokens // len(self.packing))
        for held, alike in groupby(range(len(self.rows)), key=lambda at: layer in self.rows[at].held):
            found = list(alike)
            begin, end = found[0] * len(self.draws), (found[-1] + 1) * len(self.draws)
            for at in range(begin, end, together):
                yield slice(at, min(at + together, end)), held

    def values(self, answers: Tensor) -> Iterator[tuple[Row, Tensor]]:
        """For each row, the metric [group, draw]; `answers` [fact, position]."""
        sweep, length = self.sweep, answers.shape[1]
        final = self.final[: len(self.rows)].unflatten(2, (length, -1)).movedim(2, 0).transpose(2, 3)
        shape = final.shape[:-1]  # [position, row, group, draw]
        each = torch.arange(length, device=answers.device)[:, None, None, None]
        of = ((self.draws // sweep.samples) * length + each).expand(shape).flatten()
        anatomy, clean, metric = sweep.model.anatomy, sweep.clean_logits, sweep.reading.each
        found = values_at(anatomy, final.flatten(0, 3), metric, answers.flatten(), sweep.others, clean, of)
        yield from zip(self.rows, sweep.reading.joined(found.unflatten(0, shape)), strict=True)
