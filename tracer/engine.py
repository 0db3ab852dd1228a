"""What computes the maps of facts that are alike: the sweep, or the definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from tracer.anatomy import SubLayer
from tracer.reading import Answers
from tracer.severed import Severed
from tracer.site import TokenGroups, Unit

EngineName = Literal["sweep", "passes"]
Map = Float[Tensor, "fact token layer sample"]


class Engine(Protocol):
    """`tracer.sweep.BatchSweep` or `tracer.passes.BatchPasses`."""

    @property
    def clean_logits(self) -> Float[Tensor, "fact vocab"]:
        """Logits after the prompt in the clean runs."""
        ...

    @property
    def corrupted_logits(self) -> Float[Tensor, "fact*sample vocab"]:
        """Logits after the prompt in the corrupted runs, fact after fact."""
        ...

    def unrestored(self, answer_ids: Answers) -> tuple[Float[Tensor, " fact"], Float[Tensor, " fact*sample"]]:
        """The metric of the clean runs, and of the corrupted ones."""
        ...

    def state_maps(self, answer_ids: Answers, tokens: TokenGroups) -> Map:
        """The metric with each state restored."""
        ...

    def window_maps(self, kind: SubLayer, answer_ids: Answers, tokens: TokenGroups, window: int) -> Map:
        """The metric with each window of sub-layers restored."""
        ...

    def severed_maps(self, path: SubLayer | Severed, answer_ids: Answers, tokens: TokenGroups) -> Map:
        """The metric with each state restored and `path` held corrupted."""
        ...

    def unit_maps(
        self, units: Sequence[Unit], answer_ids: Answers, tokens: Sequence[int]
    ) -> Float[Tensor, "fact token unit sample"]:
        """The metric with each head or neuron restored alone."""
        ...
