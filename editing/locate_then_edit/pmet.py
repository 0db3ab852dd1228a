"""PMET: as MEMIT, but attention may absorb what is not the MLP's knowledge (Li et al. 2024).

Values are optimised at the outputs of the attention and of the MLP together; only the MLP's is written,
with the residual spread over the layers by square roots.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from editing.locate_then_edit.memit import MEMIT
from editing.locate_then_edit.spread import Solve, Spread
from editing.locate_then_edit.suffix import Part
from editing.locate_then_edit.values import Search
from tracer.model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class PMET(MEMIT):
    """Precise model editing.

    Attributes:
        layers, strength: as in `MEMIT`.

    Source: Li et al. 2024 (arXiv:2308.08742), sec. 4.
    """

    steps: int = 30
    kl: float = 1.0

    published_rate: ClassVar[float] = 0.2
    published_strength: ClassVar[float] = 6_000.0

    def target(self, model: LanguageModel) -> tuple[int, tuple[Part, ...]]:
        """The outputs of the last matrices of the last layer's MLP, which is written, and of its attention."""
        return self.layers[-1], ("mlp", "attn")

    def spread(self, model: LanguageModel, solve: Solve) -> Spread:
        """The MLP's residual at the last layer is written into every layer as it is, as published."""
        return Spread(self.layers, "mlp", self.share, solve)

    def search(self, model: LanguageModel) -> Search:
        """With PMET's own way to stop."""
        return dataclasses.replace(super().search(model), greedy=True)

    def share(self, left: int) -> float:
        """Square roots: the earlier layers take more than in MEMIT."""
        return math.sqrt(left)
