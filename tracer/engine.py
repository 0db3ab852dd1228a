"""What computes the maps of facts that are alike: the sweep, or the definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor

from tracer.anatomy import SubLayer
from tracer.reading import Answers
from tracer.severed import Severed
from tracer.site import TokenGroups, Unit

EngineName = Literal["sweep", "passes"]


class Engine(Protocol):
    """`tracer.sweep.BatchSweep` or `tracer.passes.BatchPasses`."""

    @property
    def clean_logits(self) -> Tensor:
        """Logits after the prompt in the clean runs, [fact, vocab]."""
        ...

    @property
    def corrupted_logits(self) -> Tensor:
        """Logits after the prompt in the corrupted runs, [fact * sample, vocab]."""
        ...

    def unrestored(self, answer_ids: Answers) -> tuple[Tensor, Tensor]:
        """The metric of the clean runs, [fact], and of the corrupted ones, [fact * sample]."""
        ...

    def state_maps(self, answer_ids: Answers, tokens: TokenGroups) -> Tensor:
        """The metric with each state restored, [fact, token, layer, sample]."""
        ...

    def window_maps(self, kind: SubLayer, answer_ids: Answers, tokens: TokenGroups, window: int) -> Tensor:
        """The metric with each window of sub-layers restored, [fact, token, layer, sample]."""
        ...

    def severed_maps(self, path: SubLayer | Severed, answer_ids: Answers, tokens: TokenGroups) -> Tensor:
        """The metric with each state restored and `path` held corrupted, [fact, token, layer, sample]."""
        ...

    def unit_maps(self, units: Sequence[Unit], answer_ids: Answers, tokens: Sequence[int]) -> Tensor:
        """The metric with each head or neuron restored alone, [fact, token, unit, sample]."""
        ...
