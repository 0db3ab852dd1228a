"""T-Patcher: for each answer token that the model gets wrong, one neuron beside the last MLP.

A neuron is trained to fire on its query, the MLP's input at the token that predicts the wrong one, to mend
it there, and to stay silent on a memory of other texts. Sequences of edits add neuron to neuron.
Nothing of the model is run while training: only the last MLP (of an encoder-decoder the decoder's) and the head
depend on a neuron (`last_layer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from editing.added_parameters.attaching import attach_and_score
from editing.added_parameters.last_layer import LastLayer, last_layer
from editing.added_parameters.patch import Patch, attached_patches
from editing.added_parameters.patch_training import Neurons, Schedule, TrainedPatch, Training, trained_patches
from editing.added_parameters.side_branch import check_place, model_activation
from editing.added_parameters.side_by_side import AT_ONCE, Company, SideBySide
from editing.added_parameters.silent_rows import LEAST_ROWS, SilentRows, silent_rows
from editing.edit import Edit
from editing.errors import EditFailedError, RequestError
from editing.request import EditRequest
from editing.setting_checks import check_above_zero, check_not_negative, check_whole
from editing.stopwatch import now
from tracer.model import LanguageModel
from tracer.progress import bar

Act = Literal["relu", "model"]


@dataclass(frozen=True, kw_only=True)
class TPatcher(SideBySide["_Found"]):
    """Neurons beside the last MLP; settings and `apply`.

    Attributes:
        act: "relu" adds exactly nothing to what does not fire a neuron; "model" is the MLP's own, as published.
        memory: rows that neurons should not fire on, 8 at least; published: 40,000.
        most: neurons for one request; further wrong tokens get none.
        rate: Adam's.
        steps: for one request, at most.
        first_check, every: steps to the first look at the answer, and between two.
        activation_weight, memory_weight: w_a and w_m of the loss.

    Source: Huang et al. 2023 (arXiv:2301.09785), the settings for zsRE; the memory's size and mixture are ours.
    """

    method = "T-Patcher"

    act: Act = "relu"
    memory: int = 4000
    most: int = 5
    rate: float = 0.01
    steps: int = 2000
    first_check: int = 100
    every: int = 25
    activation_weight: float = 1.0
    memory_weight: float = 10.0

    def __post_init__(self) -> None:
        if self.act not in get_args(Act):
            raise RequestError(f"act={self.act!r}: choose from {', '.join(get_args(Act))}.")
        check_whole(self, {"memory": 4000}, least=LEAST_ROWS)
        check_whole(self, {"most": 5, "steps": 2000, "first_check": 100, "every": 25})
        check_above_zero(self, {"rate": 0.01})
        check_not_negative(self, {"activation_weight": 1.0, "memory_weight": 10.0})

    @property
    def schedule(self) -> Schedule:
        """How a request's neurons are trained."""
        options = asdict(self)
        return Schedule(**{name: options[name] for name in Schedule.__dataclass_fields__})

    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> Edit:
        """Trains neurons for one request after the other; an answer that is said already gets none.

        Args:
            model: no weight of it changes.
            requests: facts to learn; none is no change.
            seed: of the memory's text and of the first request's new values; the next one's is one more.
            progress: whether to show bars; None: in a terminal or notebook.

        Raises:
            AnatomyError: the last MLP has no value matrix, or its training cannot be cached (`last_layer`).
            RequestError: two requests contradict each other.
            EditFailedError: a loss became NaN; the model is as it was.
        """
        return self._together(model, requests, seed, progress)

    def _check_place(self, model: LanguageModel) -> None:
        check_place(model, model.n_layers - 1)

    def _learnt(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        seed: int,
        progress: bool | None,
        company: Company,
    ) -> list[_Found]:
        """The neurons of each request beside those of the requests before it."""
        alone, everyone = company == "alone", [request.subject for request in requests]
        tasks: list[_Task] = []
        found: list[_Found] = []
        for number, request in enumerate(requests):
            subjects, own = (everyone, seed + number) if company == "together" else ([request.subject], seed)
            memory = silent_rows(model, self.memory, seed=seed, without=subjects, progress=progress)
            tasks.append(_Task(request, memory, own))
        most = AT_ONCE if alone or self.act == "relu" else 1  # others fire on everything
        size = most
        with bar(len(tasks), "training neurons", show=progress, unit="edit") as steps:
            while len(found) < len(tasks):
                earlier = [] if alone else [patch for one in found for patch in one.patches]
                some = self._side_by_side(model, tasks[len(found) : len(found) + size], earlier, alone=alone)
                found += some
                size = min(most, 2 * len(some))  # what was found in part is followed by a smaller group
                steps.update(len(some))
        return found

    def _side_by_side(
        self, model: LanguageModel, tasks: Sequence[_Task], earlier: Sequence[Patch], *, alone: bool
    ) -> list[_Found]:
        """Trains the first requests, up to one on whose answer a neuron of another one here fires.

        A neuron that does not fire adds exactly nothing, so that until then none of them matters to the others.
        """
        begun = now(model)
        states = [last_layer(model, task.request).with_patches(earlier) for task in tasks]
        seen = [patch.seen for patch in (*attached_patches(model), *earlier)]
        trainings = []
        for task, state in zip(tasks, states, strict=True):
            trainings.append(self._training(task, state, seen))
            if trainings[-1] and not alone:
                seen = [*seen, state.seen]
        try:
            found = iter(trained_patches([one for one in trainings if one], self.schedule))
        except EditFailedError:  # perhaps of one that would have been trained again
            if len(tasks) == 1:
                raise
            return self._side_by_side(model, tasks[:1], earlier, alone=alone)
        made = [_noted(one, next(found)) if one else ([], {"neurons": 0, "steps": 0}) for one in trainings]
        count = 1
        while count < len(tasks) and (alone or not _any_fires(made[:count], states[count])):
            count += 1
        share = (now(model) - begun) / count
        return [_Found(patches, {**note, "seconds": share}) for patches, note in made[:count]]

    def _training(self, task: _Task, state: LastLayer, seen: Sequence[Tensor]) -> Training | None:
        """What is to be trained for a request; None where the model says the answer."""
        wrong = state.wrong()[: self.most]
        if not wrong:
            return None
        act = model_activation(state.model) if self.act == "model" else self.act
        neurons = Neurons(state.entering[wrong], act, torch.Generator().manual_seed(task.seed))
        rows = torch.cat([task.memory.trained, *(rows.to(task.memory.trained) for rows in seen)])
        return Training(neurons, state, SilentRows(rows, task.memory.validation))

    def _finish(self, edit: Edit, found: Sequence[_Found]) -> None:
        patches = [patch for one in found for patch in one.patches]
        attach_and_score(
            edit, patches, [one.note for one in found], advice="Use more steps, or a smaller memory_weight."
        )
        neurons = sum(len(patch.keys) for patch in patches)
        edit.summary = {"neurons": neurons, "bytes_added": sum(patch.n_bytes for patch in patches)}


@dataclass(frozen=True, eq=False)
class _Task:
    """A request, what its neurons should not fire on, and the seed of their values."""

    request: EditRequest
    memory: SilentRows
    seed: int


@dataclass(frozen=True, eq=False)
class _Found:
    """The patches of a request, one or none, and what is known of their training."""

    patches: Sequence[Patch]
    note: Mapping[str, Any]


def _any_fires(found: Sequence[tuple[list[Patch], dict[str, Any]]], state: LastLayer) -> bool:
    """Whether a neuron of these requests adds something where another one's answer is predicted."""
    return any(bool(patch.increment(state.entering).any()) for patches, _ in found for patch in patches)


def _noted(training: Training, found: TrainedPatch) -> tuple[list[Patch], dict[str, Any]]:
    """The patch of a request, and what is known of its training."""
    apart = training.memory.validation
    firing = apart @ found.patch.keys.to(apart).T + found.patch.biases.to(apart) > 0
    return [found.patch], {
        "neurons": len(found.patch.keys),
        "steps": found.steps,
        "edit_loss": found.edit_loss,
        "memory_loss": found.memory_loss,
        "memory_fired": float(firing.any(-1).double().mean()),
        "said": found.said,
    }
