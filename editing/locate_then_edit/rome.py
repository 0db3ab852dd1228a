"""ROME: write one fact into one MLP by a rank-one change of its output weights.

W is read as a memory of pairs (k, v). Inserting (k*, v*) with the least disturbance of the other
keys, min tr(D C D^T) subject to (W + D) k* = v*, gives (Meng et al. 2022, eq. 2)
    D = (v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*)
The published code uses the mean key over contexts for the direction but the bare prompt's key
elsewhere; r-ROME (Gupta et al. 2024) uses one key throughout, which removes edits that blow up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from editing.change import LowRank
from editing.edit import Edit
from editing.errors import EditFailedError, RequestError
from editing.locate_then_edit.contexts import PUBLISHED
from editing.locate_then_edit.covariance import SecondMoment
from editing.locate_then_edit.editor import LocateThenEdit, value_record
from editing.locate_then_edit.keys import Reading, read_keys
from editing.locate_then_edit.rows import request_rows
from editing.locate_then_edit.suffix import Part
from editing.locate_then_edit.values import Value
from editing.request import EditRequest
from editing.scoring.scores import target_scores
from editing.setting_checks import check_flag, check_whole
from editing.stopwatch import timed
from tracer.model import LanguageModel

Variant = Literal["r-rome", "rome", "p-rome"]
TITLES = {"r-rome": "r-ROME", "rome": "ROME", "p-rome": "p-ROME"}


@dataclass(frozen=True, kw_only=True)
class ROME(LocateThenEdit):
    """Rank-one model editing. Several requests are written one after the other, each on what the last one left.

    Attributes:
        layer: the MLP to write to, e.g. `tracer.locate(average).layer`.
        variant: "r-rome" (mean key everywhere), "rome" (as published: mean key for the direction,
            the bare prompt's for the value), "p-rome" (the bare prompt's key everywhere).
        identity: take C = I, as some toolkits do, instead of key statistics.

    Source: Meng et al. 2022 (arXiv:2202.05262), sec. 3.1; Gupta et al. 2024 (arXiv:2403.07175).
    """

    layer: int
    variant: Variant = "r-rome"
    context_plan: tuple[tuple[int, int], ...] = PUBLISHED
    identity: bool = False

    one_by_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, {"layer": 5}, least=None)
        check_flag(self, "identity")
        if self.variant not in get_args(Variant):
            raise RequestError(f"There is no variant {self.variant!r}. Choose from {', '.join(get_args(Variant))}.")

    @property
    def method(self) -> str:
        """The variant, as the literature writes it."""
        return TITLES[self.variant]

    def written(self) -> tuple[int, ...]:
        """The one layer that is written."""
        return (self.layer,)

    def target(self, model: LanguageModel) -> tuple[int, tuple[Part, ...]]:
        """The output of W itself: the change is exact also where a norm follows it."""
        return self.layer, ("mlp",)

    def insert(
        self, edit: Edit, requests: Sequence[EditRequest], values: Sequence[Value], *, seed: int, progress: bool | None
    ) -> None:
        """One request's key, direction and rank-one change."""
        (request,), (value,), model = requests, values, edit.applied_to
        with timed(edit, "statistics"):
            moment = None if self.identity else self.statistics(model, seed, progress)[self.layer]
        with timed(edit, "keys"):
            reading = read_keys(model, request_rows(model, [request], self.prefixes(model, seed)), self.layer)
        with timed(edit, "solve"):
            change, division, ratio = self._change(model, reading, value, moment)
        with timed(edit, "write"):
            written = edit.write(change)
        edit.changes += (change,)
        with timed(edit, "scores"):
            (score,) = target_scores(model, [(request.prompt, request.new)])
        record = {
            **value_record(request, value, score.prob),
            "division": division,
            "division_ratio": ratio,
            **dataclasses.asdict(written),
        }
        edit.diagnostics += (record,)
        edit.summary = {**edit.summary, "statistics": [] if moment is None else [moment.report()]}

    def _change(
        self, model: LanguageModel, reading: Reading, value: Value, moment: SecondMoment | None
    ) -> tuple[LowRank, float, float]:
        """The rank-one change; what it was divided by, and as a share of the direction key's; C = I if no `moment`."""
        keys, outputs = _double(reading.keys[0]), _double(reading.outputs[0])
        mean, bare = keys.mean(0), keys[0]
        direction_key = bare if self.variant == "p-rome" else mean
        direction = direction_key if moment is None else moment.solve(direction_key)
        direction = direction / direction.norm()
        key = mean if self.variant == "r-rome" else bare
        # W k + b is linear in k, so at the mean key it is the mean of the outputs.
        now = outputs.mean(0) if self.variant == "r-rome" else outputs[0]
        division = float(direction @ key)
        if not abs(division) > 1e-12:
            raise EditFailedError(f"The key is orthogonal to its own direction ({division:.1e}). Nothing was written.")
        out = ((value.wanted - now) / division)[:, None]
        own = float(direction @ direction_key)
        return LowRank(model.anatomy.value_weight_name(self.layer), out, direction[:, None]), division, division / own


def _double(found: Tensor) -> Tensor:
    return found.double().cpu()
