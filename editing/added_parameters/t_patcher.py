"""T-Patcher: for each answer token that the model gets wrong, one neuron beside the last MLP.

A neuron is trained to fire on its query, the MLP's input at the token that predicts the wrong one, to mend
it there, and to stay silent on a memory of other texts. Sequences of edits add neuron to neuron.
Nothing of the model is run while training: only the last MLP (of an encoder-decoder the decoder's) and the head
depend on a neuron (`last_layer`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from editing.added_parameters.attaching import attach_and_score, started
from editing.added_parameters.last_layer import last_layer
from editing.added_parameters.patch import Patch, attached_patches
from editing.added_parameters.patch_memory import LEAST_ROWS, Memory, memory_of
from editing.added_parameters.patch_training import Neurons, Schedule, TrainedPatch, Training, trained_patches
from editing.added_parameters.side_branch import check_place, model_activation
from editing.edit import Edit
from editing.errors import RequestError
from editing.locate_then_edit.settings import editable
from editing.numbers import check_above_zero, check_not_negative, check_whole
from editing.request import EditRequest, check_requests, listed
from tracer.model import LanguageModel
from tracer.progress import bar

Act = Literal["relu", "model"]
TOGETHER = 16  # requests trained side by side: each adds logits of its answer to memory


@dataclass(frozen=True, kw_only=True)
class TPatcher:
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
            seed: of new values and of the memory's text.
            progress: whether to show bars; None: in a terminal or notebook.

        Raises:
            AnatomyError: the last MLP has no value matrix, or its training cannot be cached (`last_layer`).
            RequestError: two requests contradict each other.
            EditFailedError: a loss became NaN; the model is as it was.
        """
        check_place(model, model.n_layers - 1)
        with self._started(model, requests, seed) as edit:
            if edit.requests:
                self._write(edit, seed, progress)
        return edit

    def each(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> list[Edit]:
        """An edit for each request alone, none of them applied; their neurons are trained side by side.

        Takes and raises what `apply` does; `edit.apply(model)` writes one.
        """
        requests, edits = listed(requests), []
        check_place(model, model.n_layers - 1)
        for request in requests:  # they may contradict each other
            check_requests(model, [request])
        with bar(len(requests), "training neurons", show=progress, unit="edit") as steps:
            for begin in range(0, len(requests), TOGETHER):
                group, begun = requests[begin : begin + TOGETHER], time.perf_counter()
                with editable(model):
                    found = self._trained([self._alone(model, request, seed, progress) for request in group])
                share = (time.perf_counter() - begun) / len(group)
                for request, (patches, note) in zip(group, found, strict=True):
                    with self._started(model, [request], seed) as edit:
                        self._finish(edit, patches, [{**note, "seconds": share}])
                    edit.undo()
                    edits.append(edit)
                    steps.update()
        return edits

    def _started(
        self, model: LanguageModel, requests: Sequence[EditRequest], seed: int
    ) -> AbstractContextManager[Edit]:
        return started(model, requests, {"method": "T-Patcher", **asdict(self), "seed": seed})

    def _write(self, edit: Edit, seed: int, progress: bool | None) -> None:
        model, subjects = edit.model, [request.subject for request in edit.requests]
        assert model is not None
        memory = memory_of(model, self.memory, seed=seed, without=subjects, progress=progress)
        generator = torch.Generator().manual_seed(seed)
        patches: list[Patch] = []
        notes: list[dict[str, Any]] = []
        with bar(len(edit.requests), "training neurons", show=progress, unit="edit") as steps:
            for request in edit.requests:
                begun = time.perf_counter()
                ((found, note),) = self._trained([self._training(model, request, patches, memory, generator)])
                patches += found
                notes.append({**note, "seconds": time.perf_counter() - begun})
                steps.update()
        self._finish(edit, patches, notes)

    def _alone(self, model: LanguageModel, request: EditRequest, seed: int, progress: bool | None) -> Training | None:
        """The training of a request as if it were the only one."""
        memory = memory_of(model, self.memory, seed=seed, without=[request.subject], progress=progress)
        return self._training(model, request, (), memory, torch.Generator().manual_seed(seed))

    def _training(
        self,
        model: LanguageModel,
        request: EditRequest,
        patches: Sequence[Patch],
        memory: Memory,
        generator: torch.Generator,
    ) -> Training | None:
        """What is to be trained for a request once `patches` are attached; None where the model says the answer."""
        state = last_layer(model, request).with_patches(patches)
        wrong = state.wrong()[: self.most]
        if not wrong:
            return None
        act = model_activation(model) if self.act == "model" else self.act
        seen = [patch.seen.to(memory.trained) for patch in (*attached_patches(model), *patches)]
        rows = torch.cat([memory.trained, *seen])
        return Training(Neurons(state.entering[wrong], act, generator), state, Memory(rows, memory.validation))

    def _trained(self, trainings: Sequence[Training | None]) -> list[tuple[list[Patch], dict[str, Any]]]:
        """The neurons of each request, and how they were trained."""
        found = iter(trained_patches([one for one in trainings if one], self.schedule))
        return [_noted(one, next(found)) if one else ([], {"neurons": 0, "steps": 0}) for one in trainings]

    def _finish(self, edit: Edit, patches: Sequence[Patch], notes: Sequence[Mapping[str, Any]]) -> None:
        attach_and_score(edit, patches, notes, advice="Use more steps, or a smaller memory_weight.")
        neurons = sum(len(patch.keys) for patch in patches)
        edit.summary = {"neurons": neurons, "bytes_added": sum(patch.n_bytes for patch in patches)}


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
