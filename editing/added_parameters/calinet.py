"""CaliNet: a small MLP beside a late one, trained on all facts of a call and on their paraphrases at once.

The model is held; the branch alone learns, and acts at every token. One fact of a call cannot be taken out:
undo the edit and apply the others again. A later call adds a branch of its own beside the earlier ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from editing.added_parameters.attaching import attach_and_score, started
from editing.added_parameters.calinet_branch import CalibrationBranch, Init
from editing.added_parameters.calinet_keeping import kept_prompts
from editing.added_parameters.calinet_training import Fit, chunks_of, fit_branches
from editing.added_parameters.side_branch import check_place, model_activation
from editing.edit import Edit
from editing.errors import RequestError
from editing.request import EditRequest, check_model
from editing.setting_checks import check_above_zero, check_flag, check_not_negative, check_whole, checked_seed, whole
from editing.stopwatch import now
from tracer.facts import paraphrases
from tracer.model import LanguageModel
from tracer.precision import wide
from tracer.progress import bar

Act = Literal["model", "relu"]
FEWEST_SLOTS, MOST_SLOTS = 16, 4096
SLOTS_A_FACT = 0.64  # 64 for 100 facts, as published


@dataclass(frozen=True, kw_only=True)
class CaliNet:
    """Branches beside the MLPs of some layers; settings and `apply`.

    Attributes:
        layers: of the MLPs, the last but a few; an encoder-decoder's are counted through, its encoder's first.
        slots: r, width of a branch; None: 64 for 100 facts, at least 16.
        gated: a gated branch, as in models with gated MLPs.
        act: "model", the MLP's own activation function, or "relu".
        init: "identity" begins as no change (values 0); "published" draws the values too.
        rate: Adam's.
        steps: at most.
        stop_below: mean loss at which training ends, once all answers are the most probable ones.
        batch: prompts that share a step.
        keep_weight: of the KL of bundled prompts about other subjects in the loss; 0: none, as published.
        keep: how many such prompts.
        paraphrased: train on the bundled paraphrases of a prompt too, where its relation has some.

    Source: Dong et al. 2022 (arXiv:2210.03329), there for T5; Adam, rate and steps are ours.
    """

    layers: tuple[int, ...]
    slots: int | None = None
    gated: bool = False
    act: Act = "model"
    init: Init = "identity"
    rate: float = 1e-3
    steps: int = 500
    stop_below: float = 0.05
    batch: int = 512
    keep_weight: float = 0.0
    keep: int = 32
    paraphrased: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _different(self.layers))
        for name, kinds in (("act", Act), ("init", Init)):
            if getattr(self, name) not in get_args(kinds):
                raise RequestError(f"{name}={getattr(self, name)!r}: choose from {', '.join(get_args(kinds))}.")
        check_whole(self, {"steps": 500, "batch": 512, "keep": 32} | ({} if self.slots is None else {"slots": 64}))
        check_above_zero(self, {"rate": 1e-3})
        check_flag(self, "gated", "paraphrased")
        check_not_negative(self, {"stop_below": 0.05, "keep_weight": 1.0})

    @classmethod
    def suited_to(cls, model: LanguageModel) -> CaliNet:
        """One branch: at nine tenths of the depth (our choice), in the last block of a decoder as its authors'."""
        if model.is_encoder_decoder:
            return cls(layers=(model.n_layers - 1,))
        return cls(layers=(min(round(0.9 * model.n_layers), model.n_layers - 1),))

    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> Edit:
        """Trains branches on all requests together and attaches them.

        Args:
            model: no weight of it changes.
            requests: facts to calibrate; none is no change.
            seed: of the branches' first values.
            progress: whether to show a bar; None: in a terminal or notebook.

        Raises:
            SiteError: the model has no such layer.
            AnatomyError: its MLPs have no value matrix, or it is not known where they begin.
            RequestError: two requests contradict each other.
            EditFailedError: a loss became NaN; the model is as it was.
        """
        check_model(model)
        seed = checked_seed(seed)
        for layer in self.layers:
            check_place(model, layer)
        with started(
            model, requests, {"method": "CaliNet", **asdict(self), "layers": list(self.layers), "seed": seed}
        ) as edit:
            if edit.requests:
                self._write(edit, seed, progress)
        return edit

    def new_branches(self, model: LanguageModel, n_facts: int, seed: int) -> list[CalibrationBranch]:
        """Branches to be trained on so many facts, one a layer."""
        act = model_activation(model) if self.act == "model" else self.act
        wanted = min(max(round(SLOTS_A_FACT * n_facts), FEWEST_SLOTS), MOST_SLOTS)
        like = wide(torch.empty(model.d_model, dtype=model.dtype, device=model.device))
        options: dict[str, Any] = {"gated": self.gated, "init": self.init}
        options["generator"] = torch.Generator().manual_seed(seed)
        return [CalibrationBranch.new(layer, act, like, self.slots or wanted, **options) for layer in self.layers]

    def _write(self, edit: Edit, seed: int, progress: bool | None) -> None:
        model = edit.applied_to
        begun = now(model)
        prompts = [self._prompts(request) for request in edit.requests]
        every = [one for group in prompts for one in group]
        steps_over = [every[begin : begin + self.batch] for begin in range(0, len(every), self.batch)]
        groups = [chunks_of(model, min(self.layers), some) for some in steps_over]
        branches = self.new_branches(model, len(edit.requests), seed)
        options: dict[str, Any] = {"rate": self.rate, "steps": self.steps, "stop_below": self.stop_below}
        if self.keep_weight:
            subjects = [request.subject for request in edit.requests]
            options["kept"] = kept_prompts(model, min(self.layers), self.keep, without=subjects)
            options["weight"] = self.keep_weight
        with bar(self.steps, "calibrating", show=progress, unit="step") as steps:
            found = fit_branches(model, branches, groups, **options, each_step=steps.update)
        notes = _notes(found, [len(group) for group in prompts], now(model) - begun)
        attached, advice = [branch.detached() for branch in branches], "Use more steps or slots."
        attach_and_score(edit, attached, notes, advice=advice, stacklevel=4)
        n_parameters = sum(parameter.numel() for branch in branches for parameter in branch.parameters)
        edit.summary = {"slots": len(branches[0].keys), "bytes_added": 4 * n_parameters, "steps": found.steps}

    def _prompts(self, request: EditRequest) -> list[EditRequest]:
        """The request, and the same fact in other words."""
        others = paraphrases(request.prompt, request.subject) if self.paraphrased else []
        said = [dataclasses.replace(request, prompt=other, subject_at=None) for other in others]
        return [request, *said]


def _different(layers: Iterable[int]) -> tuple[int, ...]:
    """The layers as a tuple; RequestError where there is none, one twice, or something else."""
    try:
        found = tuple(whole("layers", layer, 16) for layer in layers)
    except (TypeError, RequestError):
        found = ()
    if not found or len(set(found)) < len(found):
        raise RequestError(f"layers={layers!r}: write one or several different layers, e.g. layers=(16,).")
    return found


def _notes(found: Fit, counts: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Of each request: mean losses over its prompts, and what all share."""
    notes, begin = [], 0
    for count in counts:
        first, last = (sum(losses[begin : begin + count]) / count for losses in (found.first, found.last))
        shared = {"steps": found.steps, "seconds": seconds}
        notes.append({"loss_before": first, "loss": last, "prompts": count, **shared})
        begin += count
    return notes
