"""AlphaEdit: change only what old keys hardly use, and spare the keys of earlier edits (Fang et al. 2025).

    D = R K^T P (K K^T P + Kp Kp^T P + g I)^-1,   P = U U^T
U spans the null space of C, as far as it has one: eigenvectors with small eigenvalues. Kp are the keys of
earlier AlphaEdit edits that are applied: each edit carries its own, so undoing it forgets them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from editing.edit import Edit
from editing.errors import CovarianceError, EditingWarning
from editing.locate_then_edit.covariance import SecondMoment
from editing.locate_then_edit.memit import MEMIT
from editing.locate_then_edit.solve import Factors, Keys, Residuals, null_space_update
from editing.locate_then_edit.spread import mean_keys, read_all
from editing.locate_then_edit.values import Value
from editing.request import EditRequest
from editing.setting_checks import check_above_zero
from editing.stopwatch import timed
from tracer.model import LanguageModel

SMALL_SHARE = 0.1  # of C's trace that the null space may carry
FEW_TOKENS = 5  # a neuron: with fewer the smallest eigenvalues say more of the sample than of the keys
STRENGTH_PER_KEY = 0.1  # g over the mean squared length of the null space's part of an edit's keys


@dataclass(frozen=True, kw_only=True)
class AlphaEdit(MEMIT):
    """Null-space constrained editing, for many edits in sequence.

    Attributes:
        layers: as in `MEMIT`.
        threshold: eigenvalues of C below it count as 0; None: the smallest that carry 10 % of its trace
            together (an absolute threshold means something else in every model; 2 % left SmolLM2 a ninth of its
            directions, too few for a batch of a hundred keys).
        strength: g; None: a tenth of the mean squared length of the requests' keys inside the null space.

    Source: Fang et al. 2025 (arXiv:2410.02355), eq. 14.
    """

    threshold: float | None = None

    published_strength: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, {"threshold": 2e-2}, or_none=True)

    def insert(
        self, edit: Edit, requests: Sequence[EditRequest], values: Sequence[Value], *, seed: int, progress: bool | None
    ) -> None:
        """All requests, layer after layer; then their keys on the final weights are kept for later edits."""
        model = edit.applied_to
        with timed(edit, "statistics"):
            moments = self.statistics(model, seed, progress)
        prefixes = self.prefixes(model, seed)
        used: list[dict[str, Any]] = []

        def solve(layer: int, keys: Keys, residuals: Residuals) -> Factors:
            kept = self.null_space(moments[layer])
            strength = self._strength_for(kept, keys)
            used.append({"layer": layer, "directions": kept.shape[1], "of": len(kept), "strength": strength})
            return null_space_update(kept, keys, residuals, earlier_keys(model, layer, len(keys)), strength)

        self.spread(model, solve).write(edit, requests, values, prefixes)
        last, part = self.layers[-1], self.target(model)[1][0]
        with timed(edit, "keys"):
            final = {
                _name(layer): mean_keys(read_all(model, requests, prefixes, layer, last, part)).T
                for layer in self.layers
            }
        edit.kept = {**edit.kept, **final}
        reports = [moment.report() for moment in moments.values()]
        edit.summary = {**edit.summary, "null_space": used, "statistics": reports}

    def null_space(self, moment: SecondMoment) -> Tensor:
        """U, [d_mlp, direction].

        Raises:
            CovarianceError: no eigenvalue is small enough.
        """
        if moment.n_tokens < FEW_TOKENS * len(moment.matrix):
            warnings.warn(
                f"Layer {moment.layer}: {moment.n_tokens} tokens for {len(moment.matrix)} neurons. Directions that so "
                f"few keys happen not to use count as null, and old facts in them are not spared. Give more tokens.",
                EditingWarning,
                stacklevel=2,
            )
        values, vectors = moment.spectrum
        values = values.clamp(min=0)
        small = values < self.threshold if self.threshold else values.cumsum(0) <= SMALL_SHARE * values.sum()
        if not small.any():
            bound, instead = f"{self.threshold}", "threshold=None, or a larger one"
            if self.threshold is None:
                bound, instead = f"{SMALL_SHARE:.0%} of their sum", f"threshold={2 * float(values[0]):.1g}"
            raise CovarianceError(
                f"No direction of layer {moment.layer} has an eigenvalue below {bound}; the smallest is "
                f"{values[0]:.2g}. Write {instead}."
            )
        return vectors[:, small]

    def _strength_for(self, kept: Tensor, keys: Tensor) -> float:
        if self.strength is not None:
            return self.strength
        return max(STRENGTH_PER_KEY * float((kept.T @ keys).square().sum(0).mean()), torch.finfo(torch.float64).tiny)


def earlier_keys(model: LanguageModel, layer: int, n_neurons: int) -> Tensor:
    """Kp: keys at `layer` of all AlphaEdit edits that are applied to `model`, [d_mlp, key]."""
    found = [edit.kept[_name(layer)] for edit in model.edits if _name(layer) in edit.kept]
    return torch.cat(found, dim=1) if found else torch.zeros(n_neurons, 0, dtype=torch.float64)


def _name(layer: int) -> str:
    return f"keys at layer {layer}"
