"""KnowledgeEditor: a network reads the requested change and gates the gradient with it (De Cao et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from editing.errors import RequestError
from editing.meta_learning.hypernetwork import Hypernetwork
from editing.meta_learning.ke_network import KeNetwork
from editing.meta_learning.learned import Learned
from editing.meta_learning.matrices import Sizes
from editing.meta_learning.objective import Constrained
from editing.setting_checks import check_above_zero, check_number, check_share, check_whole


@dataclass(frozen=True, kw_only=True)
class KE(Learned):
    """Editing factual knowledge in language models; settings, `fit`, `apply`. Rates and widths are the authors'.

    Attributes:
        hidden, condition, inner: widths of the LSTM each way, of the text's vector, and of each matrix's own layer.
        largest: s_max, the bound of the step.
        smoothing: of the labels in the loss whose gradient is gated.
        answer_tokens: of the model's present answer, which the network reads too.
        repeats: how often the same change may be added until the answer is the new one; the authors try up to 5.
        rate: RMSprop's, after `warm_up` steps; it falls to 0 at the training's end.
        margin, least_margin: bounds on the drift at first and in the end.

    Source: De Cao et al. 2021 (arXiv:2104.08164), sec. 3 and appendix.
    """

    hidden: int = 256
    condition: int = 1024
    inner: int = 128
    largest: float = 1.0
    smoothing: float = 0.1
    answer_tokens: int = 5
    repeats: int = 1
    rate: float = 3e-4
    warm_up: int = 1000
    margin: float = 1e-3
    least_margin: float = 1e-5

    method: ClassVar[str] = "KE"
    of_edits: ClassVar[frozenset[str]] = frozenset({"repeats"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, {"hidden": 256, "condition": 1024, "inner": 128, "answer_tokens": 5, "repeats": 1})
        check_whole(self, {"warm_up": 1000}, least=0)
        check_number(self, {"largest": 1.0})
        check_above_zero(self, {"rate": 3e-4, "margin": 1e-3, "least_margin": 1e-5})
        check_share(self, {"smoothing": 0.1})
        if self.smoothing == 1:
            raise RequestError("smoothing=1 leaves nothing of the answer. Write smoothing=0.1.")
        if self.least_margin > self.margin:
            raise RequestError(
                f"margin={self.margin} falls to least_margin={self.least_margin}, which is larger. Write margin=1e-3, "
                f"least_margin=1e-5."
            )

    @property
    def most(self) -> int:
        """How often a request's change may be added: `repeats`."""
        return self.repeats

    def network(self, sizes: Sizes, *, embedding_size: int, dtype: torch.dtype, seed: int) -> KeNetwork:
        """One with random first values."""
        return KeNetwork(
            sizes,
            embedding_size=embedding_size,
            hidden=self.hidden,
            condition=self.condition,
            inner=self.inner,
            largest=self.largest,
            smoothing=self.smoothing,
            answer_tokens=self.answer_tokens,
            dtype=dtype,
            seed=seed,
        )

    def optimiser(self, network: Hypernetwork) -> torch.optim.Optimizer:
        """Centred RMSprop, as published."""
        group = {"params": list(network.parameters()), "lr": self.rate, "first_rate": self.rate}
        return torch.optim.RMSprop([group], centered=True)

    def objective(self) -> Constrained:
        """The Lagrangian at its first price and margin."""
        return Constrained(margin=self.margin, least_margin=self.least_margin)

    def rate_factor(self, step: int, steps: int) -> float:
        """Rises over the warm-up, or half the training if that is less, then falls to 0."""
        rise = min(self.warm_up, steps // 2)
        return (step + 1) / rise if step < rise else (steps - step) / (steps - rise)
