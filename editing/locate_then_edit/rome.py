"""ROME: write one fact into one MLP by a rank-one change of its output weights.

W is read as a memory of pairs (k, v). Inserting (k*, v*) with the least disturbance of the other
keys, min tr(D C D^T) subject to (W + D) k* = v*, gives (Meng et al. 2022, eq. 2)
    D = (v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*)
The published code uses the mean key over contexts for the direction but the bare prompt's key
elsewhere; r-ROME (Gupta et al. 2024) uses one key throughout, which removes edits that blow up.
"""

from __future__ import annotations

import dataclasses
import operator
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from editing.change import LowRank, writable
from editing.edit import Edit
from editing.errors import CovarianceError, EditFailedError, EditingWarning, RequestError
from editing.locate_then_edit.contexts import PUBLISHED, contexts
from editing.locate_then_edit.covariance import RIDGE, SecondMoment, second_moments
from editing.locate_then_edit.keys import keys_and_outputs
from editing.locate_then_edit.rows import request_rows
from editing.locate_then_edit.values import Value, optimise_value
from editing.request import EditRequest
from editing.scores import target_scores
from tracer.model import LanguageModel
from tracer.progress import bar

Variant = Literal["r-rome", "rome", "p-rome"]
LARGE_CHANGE = 0.5  # |D| / |W| above which an edit is likely to harm the model


@dataclass(frozen=True, kw_only=True)
class ROME:
    """Rank-one model editing; settings and `apply`.

    Attributes:
        layer: the MLP to write to, e.g. `tracer.locate(average).layer`.
        variant: "r-rome" (mean key everywhere), "rome" (as published: mean key for the direction,
            the bare prompt's for the value), "p-rome" (the bare prompt's key everywhere).
        steps, rate, decay, kl, clamp: of the value optimisation; the authors' released settings.
        context_plan: random prefixes, (how many, tokens each); () for the bare prompt alone.
        corpus: text file for the key statistics; None: text that the model writes itself.
        tokens: of the corpus; None: 100,000 of a file, 10 * d_mlp of the model's own text.
        ridge: added to the key statistics, relative to their mean eigenvalue.
        identity: take C = I, as some toolkits do, instead of key statistics.

    Source: Meng et al. 2022 (arXiv:2202.05262), sec. 3.1; Gupta et al. 2024 (arXiv:2403.07175).
    """

    layer: int
    variant: Variant = "r-rome"
    steps: int = 20
    rate: float = 0.5
    decay: float = 0.5
    kl: float = 0.0625
    clamp: float = 4.0
    context_plan: tuple[tuple[int, int], ...] = PUBLISHED
    corpus: str | Path | None = None
    tokens: int | None = None
    ridge: float = RIDGE
    identity: bool = False

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise RequestError(f"There is no variant {self.variant!r}. Choose from {', '.join(get_args(Variant))}.")
        for name in ("layer", "steps", *(("tokens",) if self.tokens is not None else ())):
            value: Any = getattr(self, name)
            try:
                object.__setattr__(self, name, operator.index(value))  # numpy's integers too
            except TypeError as error:
                raise RequestError(f"{name}={value!r} is no whole number.") from error
        if self.steps < 2:
            raise RequestError(f"steps={self.steps} leaves the value as it is. Write steps=20.")
        if self.tokens is not None and self.tokens < 2:
            raise RequestError(f"tokens={self.tokens} estimates nothing. Write tokens=100_000, or None.")
        if not self.ridge >= 0:
            raise RequestError(f"ridge={self.ridge} is negative. Write ridge={RIDGE}.")
        if self.corpus is not None and not Path(self.corpus).is_file():
            raise CovarianceError(f"There is no corpus file {self.corpus}. Give a text file, or None.")

    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> Edit:
        """Writes the requests one after the other, each on the weights that the last one left.

        Args:
            model: edited in place; `Edit.undo` puts it back.
            requests: facts to write; none is no change.
            seed: of the random prefixes, and of the text the model writes for its key statistics.
            progress: show bars; None: in a terminal or notebook.

        Raises:
            SiteError: the model has no such layer.
            BaseModelError: its weight is quantised or offloaded.
            RequestError: two requests for one prompt and subject.
            EditFailedError: the optimisation failed; the model is as it was.
        """
        writable(model, model.anatomy.value_weight_name(self.layer))
        check_requests(model, requests)
        model.torch.eval()  # dropout after W would break W' k* = v*
        with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
            return self._apply(model, requests, seed, progress)

    def _apply(self, model: LanguageModel, requests: Sequence[EditRequest], seed: int, progress: bool | None) -> Edit:
        moment = None if self.identity or not requests else self._statistics(model, seed, progress)
        prefixes = contexts(model, seed=seed, plan=self.context_plan) if requests else ()
        edit = Edit(tuple(requests), (), {"method": "ROME", **self._settings(), "seed": seed}, model.fingerprint())
        edit.start(model)
        try:
            with bar(len(requests) * self.steps, "optimising values", show=progress, unit="step") as steps:
                for request in requests:
                    self._write(edit, request, prefixes, moment, steps)
        except BaseException:
            edit.undo()
            raise
        return edit

    def _statistics(self, model: LanguageModel, seed: int, progress: bool | None) -> SecondMoment:
        options: dict[str, Any] = {"corpus": self.corpus, "tokens": self.tokens, "ridge": self.ridge}
        return second_moments(model, [self.layer], seed=seed, progress=progress, **options)[self.layer]

    def _write(
        self, edit: Edit, request: EditRequest, prefixes: Sequence[str], moment: SecondMoment | None, steps: Any
    ) -> None:
        """Keys, value, rank-one change of one request; its record goes to the edit's diagnostics."""
        model, begun = edit.model, time.perf_counter()
        assert model is not None
        rows = request_rows(model, request, prefixes)
        keys, outputs = keys_and_outputs(model, self.layer, rows)
        value = optimise_value(
            model,
            self.layer,
            rows,
            outputs[0],
            steps=self.steps,
            rate=self.rate,
            decay=self.decay,
            kl=self.kl,
            clamp=self.clamp,
            each_step=steps.update,
        )
        change, division = self._change(model, keys[:-1], outputs[:-1], value, moment)
        written = edit.write(change)
        edit.changes += (change,)
        (score,) = target_scores(model, [(request.prompt, request.new)])
        record = {
            "subject": request.subject,
            "new": request.new,
            "probability_before": value.probability[0],
            "probability_reached": value.probability[1],
            "probability_written": score.prob,
            **value.loss,
            "steps": value.steps,
            "clamped": value.clamped,
            "division": division,
            **dataclasses.asdict(written),
            "statistics": None if moment is None else moment.report(),
            "seconds": time.perf_counter() - begun,
        }
        edit.diagnostics += (record,)
        _warn(record)

    def _change(
        self, model: LanguageModel, keys: Tensor, outputs: Tensor, value: Value, moment: SecondMoment | None
    ) -> tuple[LowRank, float]:
        """The rank-one change, and the factor it was divided by.

        Args:
            model: edited.
            keys: of the contexts, the bare prompt first, [row, d_mlp].
            outputs: W k + b for them, [row, d_model].
            value: delta and z0.
            moment: key statistics; None for C = I.
        """
        keys, outputs, delta = keys.double().cpu(), outputs.double().cpu(), value.delta.double().cpu()
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
        wanted = value.initial.double().cpu() + delta
        out = ((wanted - now) / division)[:, None]
        return LowRank(model.anatomy.value_weight_name(self.layer), out, direction[:, None]), division

    def _settings(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self)
        return {**settings, "corpus": None if self.corpus is None else Path(self.corpus).name}


def check_requests(model: LanguageModel, requests: Sequence[EditRequest]) -> None:
    """Tokenises every request and refuses two different answers to one prompt, before anything is written."""
    seen: dict[tuple[str, str], str] = {}
    for request in requests:
        if not isinstance(request, EditRequest):
            raise RequestError(f"{request!r} is no EditRequest. Write EditRequest(prompt, subject=..., new=...).")
        known = seen.setdefault((request.prompt, request.subject), request.new.strip())
        if known != request.new.strip():
            raise RequestError(
                f"{request.prompt!r} is asked to become both {known!r} and {request.new.strip()!r}. Keep one of them."
            )
        request.fact.preflight(model, warn=False)


def _warn(record: dict[str, Any]) -> None:
    """Says what went less well than it should."""
    said = f"{record['subject']} -> {record['new'].strip()}"
    if record["lost_by_rounding"] > 0.05:
        share = f"{record['lost_by_rounding']:.0%}"
        warnings.warn(
            f"{said}: {share} of the change is lost by rounding. Edit in float32.", EditingWarning, stacklevel=5
        )
    if record["relative_change"] > LARGE_CHANGE:
        warnings.warn(
            f"{said}: the change is {record['relative_change']:.2f} of the weight's norm and may harm the model. "
            f"Use another layer or a smaller clamp.",
            EditingWarning,
            stacklevel=5,
        )
    if record["probability_written"] < 0.5 <= record["probability_reached"]:
        warnings.warn(
            f"{said}: the value found reaches probability {record['probability_reached']:.2f}, the edited weights only "
            f"{record['probability_written']:.2f} on the bare prompt: its key is far from the mean over contexts. Use "
            f'variant="rome", or key statistics from more varied text.',
            EditingWarning,
            stacklevel=5,
        )
    if record["probability_reached"] < 0.5:
        warnings.warn(
            f"{said}: the optimisation reached probability {record['probability_reached']:.2f} only. "
            f"Use another layer, more steps or a larger clamp.",
            EditingWarning,
            stacklevel=5,
        )
