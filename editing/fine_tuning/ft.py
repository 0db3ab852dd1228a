"""Fine-tuning as an editor: a few gradient steps on one value matrix, all requests of a call together.

FT     free descent on the loss as published, which reads every target token after the prompt alone
FT-L   the same inside a small ball, |W - W0| <= eps in each entry (Zhu et al. 2020, arXiv:2012.00363)
FT-M   free descent on the target's own likelihood, -(1/T) sum_t log p(y_t | x, y_<t)
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch

from editing.change import Replacement, writable
from editing.edit import Edit
from editing.errors import EditFailedError, EditingWarning, RequestError
from editing.fine_tuning.descent import Descent, Loss, batch_of, descend
from editing.fine_tuning.many_descents import descend_each, most_together
from editing.fine_tuning.trained_matrix import trained_parameters
from editing.locate_then_edit.presets import known_settings, short_name
from editing.request import EditRequest, check_requests, listed
from editing.scoring.scores import target_scores
from editing.setting_checks import check_above_zero, check_not_negative, check_whole, checked_seed
from editing.shortfall import LARGE_CHANGE, LOST, warn_unsaid
from editing.stopwatch import now
from editing.writing import writing
from tracer.model import LanguageModel
from tracer.progress import bar

Variant = Literal["FT", "FT-L", "FT-M"]
RADIUS_SHARE = 0.02  # of the weight's root mean square: FT-L's radius where none is published

# Published settings; the first of a model is its default. "FT-L" of some toolkits has no ball: that is FT here.
PRESETS: Mapping[str, Mapping[Variant, Mapping[str, Any]]] = {
    "gpt2-medium": {"FT-L": {"layer": 0, "radius": 2e-3}},
    "gpt2-large": {"FT-L": {"layer": 0, "radius": 1e-3}},
    "gpt2-xl": {"FT-L": {"layer": 0, "radius": 5e-4}, "FT": {"layer": 1}},
    "gpt-j-6b": {"FT-L": {"layer": 0, "radius": 5e-5}, "FT": {"layer": 21}, "FT-M": {"layer": 21}},
    "llama-2-7b": {"FT-M": {"layer": 21}, "FT": {"layer": 21}},
    "llama-3-8b": {"FT-M": {"layer": 21}, "FT": {"layer": 21}},
    "qwen2.5-7b": {"FT-M": {"layer": 27}, "FT": {"layer": 27}},
}


@dataclass(frozen=True, kw_only=True)
class FT:
    """Fine-tuning of one MLP's output weight and bias; settings and `apply`.

    Attributes:
        layer: the MLP to train; an encoder-decoder's layers are counted through, the encoder's first.
        loss: "target_new" (FT-M), or "prompt_last" as published for FT and FT-L.
        radius: eps of the ball around the old weights; None: no ball.
        steps: rounds over the requests, at most.
        rate: Adam's.
        batch: requests that share a gradient step.

    Source: Zhu et al. 2020 (arXiv:2012.00363); Meng et al. 2022, appendix E.1; Zhang et al. 2024 (arXiv:2401.01286).
    """

    layer: int
    loss: Loss = "target_new"
    radius: float | None = None
    steps: int = 25
    rate: float = 5e-4
    batch: int = 128

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise RequestError(f"There is no loss {self.loss!r}. Choose from {', '.join(get_args(Loss))}.")
        check_whole(self, {"layer": 0}, least=None)
        check_whole(self, {"steps": 25, "batch": 128})
        check_above_zero(self, {"rate": 5e-4})
        check_not_negative(self, {"radius": 5e-4}, or_none=True)

    @property
    def variant(self) -> Variant:
        """The name these settings go by."""
        if self.loss == "target_new":
            return "FT-M"
        return "FT" if self.radius is None else "FT-L"

    @classmethod
    def preset(cls, name: str, variant: Variant | None = None, **changes: Any) -> FT:
        """The published settings for a model such as "gpt2-xl", with changes; without `variant` the first there are.

        Raises:
            RequestError: none are published, or there is no such setting.
        """
        known = PRESETS.get(short_name(name), {})
        if not known or (variant is not None and variant not in known):
            there = "; ".join(f"{model} ({', '.join(variants)})" for model, variants in PRESETS.items())
            raise RequestError(
                f"No published settings for {name} {variant or ''}: {there}. Or write FT.suited_to(model)."
            )
        chosen = variant or next(iter(known))
        return cls(**{"loss": _loss(chosen), **known[chosen], **known_settings(cls, changes)})

    @classmethod
    def suited_to(cls, model: LanguageModel, variant: Variant = "FT-M") -> FT:
        """Settings for a model that no paper lists: our choice, by analogy.

        The layer is the first for FT-L and the one at three quarters of the depth otherwise (21 of
        GPT-J's 28); the radius is a share of the weight's root mean square.

        Raises:
            RequestError: there is no such variant.
        """
        if variant not in get_args(Variant):
            raise RequestError(f"There is no variant {variant!r}. Choose from {', '.join(get_args(Variant))}.")
        if variant != "FT-L":
            return cls(layer=3 * model.n_layers // 4, loss=_loss(variant))
        weight = next(iter(trained_parameters(model, 0).values()))
        return cls(layer=0, loss=_loss(variant), radius=RADIUS_SHARE * float(weight.double().square().mean().sqrt()))

    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> Edit:
        """Trains on all requests together and writes the result.

        Args:
            model: edited in place; `Edit.undo` puts it back.
            requests: facts to learn together; none is no change.
            seed: recorded; nothing is drawn.
            progress: whether to show a bar; None: in a terminal or notebook.

        Raises:
            SiteError: the model has no such layer.
            BaseModelError: its weight is quantised or offloaded.
            RequestError: two requests for one prompt and subject.
            EditFailedError: the loss became NaN, or rounding swallows the change; the model is as it was.
        """
        requests, seed = listed(requests), checked_seed(seed)
        self._check(model, requests)
        edit = Edit(tuple(requests), (), self._settings(seed), model.fingerprint())
        with writing(edit, model):
            if requests:
                self._write(edit, self._descent(model, requests, progress))
        return edit

    def each(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> list[Edit]:
        """An edit for each request alone, none of them applied; their steps are taken side by side.

        Takes and raises what `apply` does; `edit.apply(model)` writes one.
        """
        requests, seed = listed(requests), checked_seed(seed)
        for request in requests:  # they may contradict each other
            self._check(model, [request])
        found, most = [], most_together(model, self.layer)
        with bar(len(requests) * self.steps, "fine-tuning", show=progress, unit="step") as steps:
            for at in range(0, len(requests), most):
                group, begun = requests[at : at + most], now(model)
                batch, update = batch_of(model, self.layer, group, self.loss), partial(steps.update, len(group))
                some = descend_each(model, self.layer, batch, **self._options, each_step=update)
                share = (now(model) - begun) / len(group)
                found += [dataclasses.replace(one, seconds=share) for one in some]
        edits, base = [], model.fingerprint()
        for request, descent in zip(requests, found, strict=True):
            edit = Edit((request,), (), self._settings(seed), base)
            with writing(edit, model):
                self._write(edit, descent)
            edit.undo()
            edits.append(edit)
        return edits

    def _check(self, model: LanguageModel, requests: Sequence[EditRequest]) -> None:
        check_requests(model, requests)
        writable(model, model.anatomy.value_weight_name(self.layer))

    def _settings(self, seed: int) -> dict[str, Any]:
        return {"method": self.variant, **dataclasses.asdict(self), "seed": seed}

    @property
    def _options(self) -> dict[str, Any]:
        return {"rate": self.rate, "steps": self.steps, "radius": self.radius}

    def _descent(self, model: LanguageModel, requests: Sequence[EditRequest], progress: bool | None) -> Descent:
        begun = now(model)
        groups = [requests[at : at + self.batch] for at in range(0, len(requests), self.batch)]
        batches = [batch_of(model, self.layer, group, self.loss) for group in groups]
        with bar(len(batches) * self.steps, "fine-tuning", show=progress, unit="step") as steps:
            found = descend(model, self.layer, batches, **self._options, each_step=steps.update)
        return dataclasses.replace(found, seconds=now(model) - begun)

    def _write(self, edit: Edit, found: Descent) -> None:
        """Writes what a descent found; changes and records go to `edit`."""
        model, requests = edit.applied_to, edit.requests
        begun = now(model)
        self._check_kept(model, found)
        pairs = [(request.prompt, request.new) for request in requests]
        before = target_scores(model, pairs)
        relative = []
        for name, values in found.values.items():
            change = Replacement(name, values)
            relative.append(edit.write(change).relative_change)
            edit.changes += (change,)
        after = target_scores(model, pairs)
        shared = {
            "steps": found.steps,
            "clamped": found.clamped,
            "relative_change": relative[0],  # the weight's; the bias may have been zero
            "lost_by_rounding": found.lost_by_rounding,
            "seconds": found.seconds + now(model) - begun,
        }
        edit.diagnostics = tuple(
            {
                "subject": request.subject,
                "new": request.new,
                "probability_before": before[n].prob,
                "probability_reached": math.exp(-found.nll[1][n]),
                "probability_written": after[n].prob,
                "loss_before": found.nll[0][n],
                "loss": found.nll[1][n],
                **shared,
            }
            for n, request in enumerate(requests)
        )
        self._warn(edit)

    def _check_kept(self, model: LanguageModel, found: Descent) -> None:
        """Raises EditFailedError where steps were taken and rounding left no trace of them."""
        old = trained_parameters(model, self.layer)
        same = all(torch.equal(value, old[name]) for name, value in found.values.items())
        if found.steps and self.radius != 0 and same:
            kind = str(model.dtype).removeprefix("torch.")
            raise EditFailedError(
                f"{found.steps} steps of rate {self.rate} are lost in {kind}: no entry changes. Load float32."
            )

    def _warn(self, edit: Edit) -> None:
        """Says what went less well than it should."""
        lost, change = (edit.diagnostics[0][name] for name in ("lost_by_rounding", "relative_change"))
        if change > LARGE_CHANGE:
            warnings.warn(
                f"The change is {change:.2f} of the weight's norm and may harm the model. Use fewer steps, a lower "
                f"rate, or a {'smaller ' if self.radius else ''}radius.",
                EditingWarning,
                stacklevel=4,
            )
        if lost > LOST:
            warnings.warn(
                f"{lost:.0%} of the change is lost by rounding. Fine-tune in float32.", EditingWarning, stacklevel=4
            )
        instead = "another layer or a larger radius" if self.radius else "a higher rate or another layer"
        warn_unsaid(edit, advice=f"Use more steps, {instead}.", stacklevel=4)


def _loss(variant: Variant) -> Loss:
    return "target_new" if variant == "FT-M" else "prompt_last"
