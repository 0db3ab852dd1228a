"""What computes the maps of facts that are alike: the sweep, or the definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor

from tracer.anatomy import SubLayer
from tracer.site import Unit

EngineName = Literal["sweep", "passes"]


class Engine(Protocol):
    """`tracer.sweep.BatchSweep` or `tracer.passes.BatchPasses`."""

    @property
    def clean_logits(self) -> Tensor:
        """Last-position logits of the clean runs, [fact, vocab]."""
        ...

    @property
    def corrupted_logits(self) -> Tensor:
        """Last-position logits of the corrupted runs, [fact * sample, vocab]."""
        ...

    def state_maps(self, answer_ids: Sequence[int], tokens: list[int]) -> Tensor:
        """The metric with each state restored, [fact, token, layer, sample]."""
        ...

    def window_maps(self, kind: SubLayer, answer_ids: Sequence[int], tokens: list[int], window: int) -> Tensor:
        """The metric with each window of sub-layers restored, [fact, token, layer, sample]."""
        ...

    def severed_maps(self, path: SubLayer, answer_ids: Sequence[int], tokens: list[int]) -> Tensor:
        """The metric with each state restored and `path` held corrupted, [fact, token, layer, sample]."""
        ...

    def unit_maps(self, units: Sequence[Unit], answer_ids: Sequence[int], tokens: list[int]) -> Tensor:
        """The metric with each head or neuron restored alone, [fact, token, unit, sample]."""
        ...
