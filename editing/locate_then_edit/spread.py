"""A residual spread over several layers: the loop of MEMIT, PMET, EMMET and AlphaEdit.

    for each layer l_1 < ... < l_m = L:
        K    keys at this layer, on the weights written so far
        R    (Z - H) / share, what is still missing at layer L
        W_l  += D(K, R)
Z is what the values ask for at L, H what is there now. Both K and H move with every write, so they are
read anew (Meng et al. 2023, algorithm 1). Where a norm follows W (`after_norm`), values are wanted of
W itself at L, and the residual is what the stream lacks after that norm; the last layer is exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editing.change import LowRank
from editing.edit import Edit
from editing.locate_then_edit.editor import value_record
from editing.locate_then_edit.kept_values import TOKENS_TOGETHER
from editing.locate_then_edit.keys import Reading, read_keys
from editing.locate_then_edit.norms import after_norm, before_norm
from editing.locate_then_edit.rows import batched_rows
from editing.locate_then_edit.solve import Factors, Keys, Residuals
from editing.locate_then_edit.suffix import Part
from editing.locate_then_edit.values import Value
from editing.request import EditRequest
from editing.scoring.scores import target_scores
from editing.stopwatch import timed
from tracer.model import LanguageModel

Wanted = Float[Tensor, "request d_model"]
Solve = Callable[[int, Keys, Residuals], Factors]


@dataclass(frozen=True)
class Spread:
    """How one method goes about it.

    Attributes:
        layers: l_1 to L.
        part: what values were optimised for at L.
        share: of the layers still to write, by how much the residual is divided.
        solve: layer, K, R -> factors of D.
        through_norm: values are of W, and other layers' shares go through the norms after it.
    """

    layers: tuple[int, ...]
    part: Part
    share: Callable[[int], float]
    solve: Solve
    through_norm: bool = False

    def write(
        self, edit: Edit, requests: Sequence[EditRequest], values: Sequence[Value], prefixes: Sequence[str]
    ) -> None:
        """Writes all requests into every layer; changes, records and summary go to `edit`."""
        model = edit.applied_to
        wanted = torch.stack([value.wanted for value in values])
        last, written, gaps = self.layers[-1], [], []
        for number, layer in enumerate(self.layers):
            with timed(edit, "keys"):
                reading = read_all(model, requests, prefixes, layer, last, self.part)
            missing = wanted - reading.reached
            gaps.append(missing.norm(dim=1))
            asked = self._asked(model, layer, reading, wanted) / self.share(len(self.layers) - number)
            with timed(edit, "solve"):
                out, into = self.solve(layer, mean_keys(reading).T, asked.T)
            change = LowRank(model.anatomy.value_weight_name(layer), out, into)
            with timed(edit, "write"):
                written.append(edit.write(change))
            edit.changes += (change,)
        with timed(edit, "scores"):
            gaps.append((wanted - read_all(model, requests, prefixes, last, last, self.part).reached).norm(dim=1))
            scores = target_scores(model, [(request.prompt, request.new) for request in requests])
        largest = {name: max(getattr(one, name) for one in written) for name in ("relative_change", "lost_by_rounding")}
        for at, (request, value, score) in enumerate(zip(requests, values, scores, strict=True)):
            gap = {"residual_before": float(gaps[0][at]), "residual_after": float(gaps[-1][at])}
            edit.diagnostics += ({**value_record(request, value, score.prob), **gap, **largest},)
        by_layer = [{"layer": at, **dataclasses.asdict(one)} for at, one in zip(self.layers, written, strict=True)]
        edit.summary = {**edit.summary, "layers": by_layer}

    def _asked(self, model: LanguageModel, layer: int, reading: Reading, wanted: Wanted) -> Wanted:
        """All that is missing at the last layer, as a change of this layer's W k."""
        missing, last = wanted - reading.reached, self.layers[-1]
        if not self.through_norm or layer == last:
            return missing / (residual_factor(model) if self.part == "block" else 1)
        stream = after_norm(model, last, wanted) - after_norm(model, last, reading.reached)
        return before_norm(model, layer, reading.outputs[:, 0], stream)


def read_all(
    model: LanguageModel, requests: Sequence[EditRequest], prefixes: Sequence[str], layer: int, last: int, part: Part
) -> Reading:
    """`read_keys` of any number of requests, in their order, float64 on the CPU."""
    found: dict[int, tuple[Tensor, ...]] = {}
    for numbers, rows in batched_rows(model, requests, prefixes, tokens=TOKENS_TOGETHER):
        reading = read_keys(model, rows, layer, last=last, part=part)
        double = [one.double().cpu() for one in (reading.keys, reading.outputs, reading.reached)]
        found |= {number: tuple(one[at] for one in double) for at, number in enumerate(numbers)}
    return Reading(*(torch.stack([found[number][n] for number in range(len(requests))]) for n in range(3)))


def mean_keys(reading: Reading) -> Float[Tensor, "request d_mlp"]:
    """The bare prompt's key and the mean over the prefixes, in equal parts."""
    bare, others = reading.keys[:, 0], reading.keys[:, 1:]
    return (bare + others.mean(1)) / 2 if others.shape[1] else bare


def residual_factor(model: LanguageModel) -> float:
    """What Granite multiplies every sub-layer's output by before it is added; 1 elsewhere."""
    return float(getattr(model.torch.config.get_text_config(), "residual_multiplier", 1.0) or 1.0)
