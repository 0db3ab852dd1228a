"""MEND: a small network decomposes the gradient of one edit and makes it local and general (Mitchell et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from editing.errors import RequestError
from editing.meta_learning.hypernetwork import Hypernetwork
from editing.meta_learning.learned import Learned
from editing.meta_learning.matrices import Sizes
from editing.meta_learning.mend_network import MendNetwork
from editing.meta_learning.objective import Weighted
from editing.scoring.scores import Pair
from editing.setting_checks import check_above_zero, check_flag, check_number, check_whole
from tracer.model import LanguageModel
from tracer.model.inputs import target_encoding

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class MEND(Learned):
    """Model editor networks with gradient decomposition; settings, `fit`, `apply`. The defaults are the authors'.

    Attributes:
        rank: of the network's layers, at most n + m of a matrix.
        step: a_W at first.
        normalise: the factors, by running statistics.
        rate, step_rate: Adam's, for the network and for a_W.
        reduction: "sum" over requests, so that an edit of several is the sum of single ones; "mean" over the tokens
            of all of them, as published.

    Source: Mitchell et al. 2022 (arXiv:2110.11309), sec. 3 and appendix.
    """

    rank: int = 1920
    step: float = 1e-4
    normalise: bool = True
    rate: float = 1e-6
    step_rate: float = 1e-4
    reduction: Reduction = "sum"

    method: ClassVar[str] = "MEND"
    of_edits: ClassVar[frozenset[str]] = frozenset({"reduction"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction not in get_args(Reduction):
            raise RequestError(f"There is no reduction {self.reduction!r}. Write reduction='sum' or 'mean'.")
        check_whole(self, {"rank": 1920})
        check_above_zero(self, {"rate": 1e-6, "step_rate": 1e-4})
        check_number(self, {"step": 1e-4})
        check_flag(self, "normalise")

    def network(self, sizes: Sizes, *, embedding_size: int, dtype: torch.dtype, seed: int) -> MendNetwork:
        """One that returns the normalised factors as they are."""
        return MendNetwork(sizes, rank=self.rank, step=self.step, normalise=self.normalise, dtype=dtype, seed=seed)

    def optimiser(self, network: Hypernetwork) -> torch.optim.Optimizer:
        """Adam, with a rate of its own for a_W."""
        assert isinstance(network, MendNetwork)
        others = [parameter for parameter in network.parameters() if parameter is not network.steps]
        return torch.optim.Adam(
            [
                {"params": others, "lr": self.rate, "first_rate": self.rate},
                {"params": [network.steps], "lr": self.step_rate, "first_rate": self.step_rate},
            ]
        )

    def objective(self) -> Weighted:
        """The weighted sum that also chooses the best network."""
        return Weighted(self.edit_weight, self.drift_weight)

    def scales(self, model: LanguageModel, pairs: Sequence[Pair]) -> list[float]:
        """1 for a sum; for a mean the request's share of the tokens."""
        if self.reduction == "sum":
            return super().scales(model, pairs)
        lengths = [len(target_encoding(model, *pair).target_ids) for pair in pairs]
        return [length / sum(lengths) for length in lengths]
