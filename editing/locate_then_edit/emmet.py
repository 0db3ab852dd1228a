"""EMMET: ROME for many facts at once, every pair memorised, exactly with slack=0 (Gupta et al. 2024).

D = R (K^T C^-1 K + mu I)^-1 K^T C^-1
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from editing.edit import Edit
from editing.errors import EditingWarning
from editing.locate_then_edit.contexts import MEMIT_OPENINGS, MEMIT_PLAN
from editing.locate_then_edit.editor import LocateThenEdit
from editing.locate_then_edit.solve import Factors, Keys, Residuals, cosines, exact_update
from editing.locate_then_edit.spread import Spread
from editing.locate_then_edit.suffix import Part
from editing.locate_then_edit.values import Value
from editing.request import EditRequest
from editing.setting_checks import check_not_negative, check_whole
from editing.stopwatch import timed
from tracer.model import LanguageModel

ALIKE = 0.9  # cosine of two keys above which both are hardly answered exactly; of different subjects it is below 0.5


@dataclass(frozen=True, kw_only=True)
class EMMET(LocateThenEdit):
    """Equality-constrained mass model editing in one layer.

    Attributes:
        layer: the MLP to write to.
        slack: mu, relative to the mean of K^T C^-1 K's diagonal; a single request is always exact.

    Source: Gupta et al. 2024 (arXiv:2403.14236), eq. 12. The constants of the released code are absolute.
    """

    layer: int
    slack: float = 1e-3
    context_plan: tuple[tuple[int, int], ...] = MEMIT_PLAN

    openings: ClassVar[tuple[str, ...] | None] = MEMIT_OPENINGS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, {"layer": 5}, least=None)
        check_not_negative(self, {"slack": 1e-3})

    def written(self) -> tuple[int, ...]:
        """The one layer that is written."""
        return (self.layer,)

    def target(self, model: LanguageModel) -> tuple[int, tuple[Part, ...]]:
        """The output of W: in one layer nothing need be spread, and a norm after W need not be undone.

        So the clamp is ROME's, in units of that output; the released code has 0.75 of the block's, which is larger.
        """
        return self.layer, ("mlp",)

    def insert(
        self, edit: Edit, requests: Sequence[EditRequest], values: Sequence[Value], *, seed: int, progress: bool | None
    ) -> None:
        """All requests at once."""
        model = edit.applied_to
        with timed(edit, "statistics"):
            moment = self.statistics(model, seed, progress)[self.layer]
        slack = self.slack if len(requests) > 1 else 0.0

        def solve(_layer: int, keys: Keys, residuals: Residuals) -> Factors:
            warn_of_alike(requests, cosines(moment, keys))
            return exact_update(moment, keys, residuals, slack)

        Spread((self.layer,), "mlp", lambda _left: 1.0, solve).write(edit, requests, values, self.prefixes(model, seed))
        edit.summary = {**edit.summary, "statistics": [moment.report()]}


def warn_of_alike(requests: Sequence[EditRequest], cosines: Tensor) -> None:
    """Says where requests, such as wordings of one fact, have keys so alike that answering each takes a large change.

    Args:
        requests: n of them.
        cosines: of their keys, [n, n].
    """
    nearest, other = cosines.clone().fill_diagonal_(0).max(1)
    alike = torch.nonzero(nearest > ALIKE).flatten().tolist()
    if alike:
        one, two = requests[alike[0]].prompt, requests[int(other[alike[0]])].prompt
        warnings.warn(
            f"{len(alike)} of {len(requests)} requests have nearly the key of another, e.g. {one!r} and {two!r}. EMMET "
            f"answers each exactly, which takes a large change. Write one wording of a fact, or use MEMIT.",
            EditingWarning,
            stacklevel=2,
        )
