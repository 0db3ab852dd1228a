"""MEMIT: write many facts at once, the residual spread over a range of layers (Meng et al. 2023).

    D = R K^T (lambda C + K K^T)^-1     at each layer, R being the missing part over the layers left
For one fact q / (q + lambda) of its share is written, q = k^T C^-1 k being about d_mlp for an ordinary key.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from editing.edit import Edit
from editing.errors import RequestError
from editing.locate_then_edit.contexts import MEMIT_OPENINGS, MEMIT_PLAN
from editing.locate_then_edit.covariance import SecondMoment
from editing.locate_then_edit.editor import LocateThenEdit
from editing.locate_then_edit.norms import has_norm
from editing.locate_then_edit.solve import Factors, Keys, Residuals, ridge_update
from editing.locate_then_edit.spread import Solve, Spread
from editing.locate_then_edit.suffix import Part
from editing.locate_then_edit.values import Value
from editing.request import EditRequest
from editing.setting_checks import check_above_zero
from editing.stopwatch import timed
from tracer.model import LanguageModel

STRENGTH_PER_NEURON = 15_000 / 16_384  # GPT-J's lambda over its d_mlp


@dataclass(frozen=True, kw_only=True)
class MEMIT(LocateThenEdit):
    """Mass-editing memory in a transformer: all requests in one least-squares solution a layer.

    Attributes:
        layers: that are written, rising; values are optimised at the output of the last one. See `layers_around`.
        strength: lambda, the weight of old keys; None: 15,000 / 16,384 * d_mlp, GPT-J's for any width.

    Source: Meng et al. 2023 (arXiv:2210.07229), algorithm 1 and eq. 14.
    """

    layers: tuple[int, ...]
    strength: float | None = None
    context_plan: tuple[tuple[int, int], ...] = MEMIT_PLAN

    published_clamp: ClassVar[float] = 0.75
    published_strength: ClassVar[float] = 15_000.0
    openings: ClassVar[tuple[str, ...] | None] = MEMIT_OPENINGS

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", checked_layers(self.layers))
        check_above_zero(self, {"strength": self.published_strength}, or_none=True)

    def written(self) -> tuple[int, ...]:
        """The layers that are written, rising."""
        return self.layers

    def target(self, model: LanguageModel) -> tuple[int, tuple[Part, ...]]:
        """The output of the last layer's block; of its W where a norm follows, past which not every value can get."""
        return self.layers[-1], ("mlp",) if has_norm(model) else ("block",)

    def insert(
        self, edit: Edit, requests: Sequence[EditRequest], values: Sequence[Value], *, seed: int, progress: bool | None
    ) -> None:
        """All requests, layer after layer."""
        model = edit.applied_to
        with timed(edit, "statistics"):
            moments = self.statistics(model, seed, progress)

        def solve(layer: int, keys: Keys, residuals: Residuals) -> Factors:
            return ridge_update(moments[layer], keys, residuals, self._strength(moments[layer]))

        self.spread(model, solve).write(edit, requests, values, self.prefixes(model, seed))
        reports = [moment.report() for moment in moments.values()]
        edit.summary = {**edit.summary, "strength": self._strength(moments[self.layers[-1]]), "statistics": reports}

    def spread(self, model: LanguageModel, solve: Solve) -> Spread:
        """The loop over layers with this method's solution."""
        return Spread(self.layers, self.target(model)[1][0], self.share, solve, has_norm(model))

    def share(self, left: int) -> float:
        """The residual is divided by this where `left` layers are still to be written."""
        return left

    def _strength(self, moment: SecondMoment) -> float:
        return STRENGTH_PER_NEURON * len(moment.matrix) if self.strength is None else self.strength


def checked_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """`layers` as a rising tuple of whole numbers.

    Raises:
        RequestError: there are none, or the same one twice.
    """
    try:
        found = tuple(sorted(map(operator.index, layers)))
    except TypeError as error:  # one number, text, fractions
        raise RequestError(f"layers={layers!r} names no layers. Write e.g. layers=(3, 4, 5, 6, 7).") from error
    if not found:
        raise RequestError("layers=() names no layers. Write e.g. layers=(3, 4, 5, 6, 7).")
    if len(set(found)) != len(found):
        raise RequestError(f"layers={tuple(layers)} names a layer twice.")
    return found


def layers_around(layer: int, n_layers: int, n: int = 5) -> tuple[int, ...]:
    """`n` neighbouring layers with `layer`, e.g. `tracer.locate(average).layer`, in their middle, moved inside.

    Five is what the authors use for GPT-2 XL; in a model of few layers, at most a third of them.
    """
    n = max(1, min(n, n_layers // 3))
    begin = min(max(0, layer - n // 2), n_layers - n)
    return tuple(range(begin, begin + n))
