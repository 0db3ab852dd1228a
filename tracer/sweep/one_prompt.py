"""The sweep of one prompt: what `tracer.passes.Passes` offers, without the axis of several facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tracer.anatomy import SubLayer
from tracer.reading import AnswerIds
from tracer.severed import Severed
from tracer.site import TokenGroups, Unit
from tracer.sweep.batch_sweep import BatchSweep


class Sweep:
    """A `BatchSweep` of one prompt: the methods of `tracer.passes.Passes`, with the same results.

    Attributes:
        batch: what does the work.
        clean_logits: [vocab].
        corrupted_logits: [sample, vocab].
    """

    def __init__(self, *run: Any, **options: Any) -> None:
        self.batch = BatchSweep(*run, **options)
        self.clean_logits, self.corrupted_logits = self.batch.clean_logits[0], self.batch.corrupted_logits

    def state_map(self, answer_id: AnswerIds, tokens: TokenGroups) -> Tensor:
        """See `BatchSweep.state_maps`, without its first axis, as for the others."""
        return self.batch.state_maps([answer_id], tokens)[0]

    def severed_map(self, path: SubLayer | Severed, answer_id: AnswerIds, tokens: TokenGroups) -> Tensor:
        """As `state_map`, of `BatchSweep.severed_maps`."""
        return self.batch.severed_maps(path, [answer_id], tokens)[0]

    def window_map(self, kind: SubLayer, answer_id: AnswerIds, tokens: TokenGroups, window: int) -> Tensor:
        """As `state_map`, of `BatchSweep.window_maps`."""
        return self.batch.window_maps(kind, [answer_id], tokens, window)[0]

    def unit_map(self, units: Sequence[Unit], answer_id: AnswerIds, tokens: TokenGroups) -> Tensor:
        """As `state_map`, of `BatchSweep.unit_maps`."""
        return self.batch.unit_maps(units, [answer_id], tokens)[0]
