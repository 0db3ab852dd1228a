"""Trains a network that edits: the model stays frozen, each record is an edit of its own on its own row.

A step draws its records from (seed, step) alone and a checkpoint holds all the rest, so that a training
which was killed goes on to the same network, bit for bit, as one that was not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editing.errors import EditFailedError
from editing.meta_learning.hypernetwork import Hypernetwork
from editing.meta_learning.lessons import Lesson, edits_take, lesson_of, losses, numbers_of_step, other_words, pairs_of
from editing.meta_learning.matrices import lowest_layer
from editing.meta_learning.objective import Objective, Weighted
from editing.meta_learning.plan import TrainingPlan
from editing.meta_learning.records import TrainingRecord
from editing.meta_learning.shelf import Drawn, Shelf
from editing.meta_learning.states import Ids, states_entering
from editing.meta_learning.texts import rows_of
from editing.stopwatch import now
from editing.training.checkpoint import State, check_same_training, resume, save_state
from editing.training.result import TrainingResult
from tracer.model import LanguageModel
from tracer.progress import bar

MOST_BYTES = 2**30  # of states that are kept; what does not fit is read in every round
ANSWERED_AT_ONCE = 20  # passes: texts are written by length, and one pass has few of each


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained on what.

    Attributes:
        model: whose edits are learned.
        network: that learns them; `State` has the same one.
        objective: at first; `State.adjusted` is what training has made of it.
        records, held_out: to train and to validate on.
        plan: how long.
        seed: of the order of records and of their other words.
        rate_factor: what the rates are multiplied by at each step.
        yardstick: the loss by which validations are compared.
        about: identifies the training, for its folder.
        write_best: writes the best network into the folder.
    """

    model: LanguageModel
    network: Hypernetwork
    objective: Objective
    records: Sequence[TrainingRecord]
    held_out: Sequence[TrainingRecord]
    plan: TrainingPlan
    seed: int
    rate_factor: Callable[[int], float]
    yardstick: Weighted
    about: Mapping[str, Any]
    write_best: Callable[[Path], None]


@dataclass(frozen=True, eq=False)
class Shelves:
    """What later rounds need not read again: what enters the lowest edited block, and the model's own answers."""

    states: Shelf[Ids, Tensor]
    answers: Shelf[str, str]


def train(task: Task, state: State, *, folder: Path | None, progress: bool | None) -> TrainingResult:
    """Trains until the plan's end or its patience's; `state` then holds the best network.

    Raises:
        RequestError: the folder holds another training.
        EditFailedError: no validation had a finite loss.
    """
    model, plan = task.model, task.plan
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    if folder is not None:
        groups = {"training": task.records, "held_out": task.held_out}
        subjects = {name: sorted({record.subject for record in group}) for name, group in groups.items()}
        check_same_training(folder, task.about, subjects)
        resume(folder, state)
    ended = state.step >= plan.steps or _early(plan, state)
    held_out = [] if ended else list(_held_out_lessons(task))
    shelves = _shelves(task)
    with bar(plan.steps, "training", show=progress, unit="step") as shown:
        shown.update(state.step)
        while state.step < plan.steps and not _early(plan, state):
            begun = now(model)
            record = _step(task, state, shelves)
            state.curve.append(record)
            if state.step % plan.every == 0 or state.step == plan.steps:
                _validate(task, state, held_out, folder)
            state.seconds += now(model) - begun
            if folder is not None and state.curve[-1] is not record:
                save_state(folder, state)
            shown.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
            shown.update()
    if not state.best:
        raise EditFailedError("No validation had a finite loss. Write a smaller rate.")
    state.network.load_state_dict(state.best)
    if folder is not None:
        task.write_best(folder)  # the same bytes once more, for a folder that has lost them
    return TrainingResult.of(state, model.device, early=_early(plan, state))


def _early(plan: TrainingPlan, state: State) -> bool:
    return state.step - state.best_step >= plan.patience


def _step(task: Task, state: State, shelves: Shelves) -> dict[str, Any]:
    """One step of the optimiser; returns its record."""
    plan, network, parameters = task.plan, task.network.train(), list(task.network.parameters())
    objective = task.objective.at(state.adjusted)
    drawn = numbers_of_step(state.step, n=len(task.records), batch=plan.batch, seed=task.seed)
    sums = torch.zeros(3, dtype=torch.float64)
    for some in _passes(drawn, plan):
        known = {"read": shelves.states.reading(some), "said": shelves.answers.reading(some)}
        lesson = lesson_of(task.model, network, *_records(task, some), **known)
        found = losses(network, lesson)
        loss = objective.loss(found.edit, found.drift) * (len(found.edit) / len(drawn))
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        if not all(torch.isfinite(gradient).all() for gradient in gradients):
            state.skipped += 1
            continue
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        rows = torch.stack((found.edit, found.drift)).detach().double().sum(1).cpu()
        sums += torch.cat((rows, torch.tensor([float(len(found.edit))], dtype=torch.float64)))
    edit, drift = (sums[:2] / sums[2]).tolist()  # NaN where every pass was skipped
    loss = float(objective.loss(torch.tensor([edit]), torch.tensor([drift])))
    if sums[2]:
        _descend(task, state, parameters)
        state.adjusted = objective.stepped(drift).state()
    state.step += 1
    return {
        "step": state.step,
        "loss": loss,
        "edit_loss": edit,
        "drift": drift,
        **task.objective.at(state.adjusted).state(),
    }


def _descend(task: Task, state: State, parameters: Sequence[torch.nn.Parameter]) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, task.plan.clip)
    for group in state.optimiser.param_groups:
        group["lr"] = group["first_rate"] * task.rate_factor(state.step)
    state.optimiser.step()
    state.optimiser.zero_grad(set_to_none=True)


def _passes(drawn: Drawn, plan: TrainingPlan) -> list[Drawn]:
    """What a step draws, in parts that go through the model together."""
    return [drawn[begin : begin + plan.together] for begin in range(0, len(drawn), plan.together)]


def _records(task: Task, drawn: Drawn) -> tuple[list[TrainingRecord], list[str]]:
    """The records of a pass, and the prompt on which the success of each is measured."""
    records = [task.records[number] for number, _ in drawn]
    others = [
        other_words(task.records[number], task.plan.own_words, seed=task.seed, number=number, turn=turn)
        for number, turn in drawn
    ]
    return records, others


def _shelves(task: Task) -> Shelves:
    """States of the first round are kept where there is a second one; answers are read for many passes at once."""
    model, network, plan, n = task.model, task.network, task.plan, len(task.records)
    steps = range(min(n // plan.batch, plan.steps))
    drawn = [numbers_of_step(step, n=n, batch=plan.batch, seed=task.seed) for step in steps]
    passes = [some for of_step in drawn for some in _passes(of_step, plan)]
    far = range(0, len(passes), ANSWERED_AT_ONCE)
    answered = [list(itertools.chain(*passes[begin : begin + ANSWERED_AT_ONCE])) for begin in far]

    def rows(some: Drawn) -> list[Ids]:
        return rows_of(model, pairs_of(*_records(task, some)))

    again = plan.steps * plan.batch > n and not model.is_encoder_decoder
    size = model.d_model * model.dtype.itemsize * sum(map(len, rows(passes[0]))) if passes else 1
    read = partial(states_entering, model, lowest_layer(model, tuple(network.sizes)))
    return Shelves(
        Shelf(read, rows, passes[: MOST_BYTES // size if again else 0]),
        Shelf(partial(network.said, model), lambda some: [task.records[number].prompt for number, _ in some], answered),
    )


def _held_out_lessons(task: Task) -> Iterator[Lesson]:
    """What is validated on, recorded once for all validations; success is measured on the first rephrase."""
    for begin in range(0, len(task.held_out), task.plan.together):
        records = task.held_out[begin : begin + task.plan.together]
        yield lesson_of(task.model, task.network, records, [record.rephrases[0] for record in records])


def _validate(task: Task, state: State, lessons: Sequence[Lesson], folder: Path | None) -> None:
    """Scores the network on what is held out, and keeps it if it is the best so far."""
    network = task.network.eval()
    with torch.no_grad():
        found = [losses(network, lesson) for lesson in lessons]
        taken = torch.cat([edits_take(network, lesson) for lesson in lessons]).double().mean()
    edit, drift = (torch.cat(parts).double() for parts in zip(*((one.edit, one.drift) for one in found), strict=True))
    record = {
        "step": state.step,
        "validation": True,
        "loss": float(task.yardstick.loss(edit, drift)),
        "edit_loss": float(edit.mean()),
        "drift": float(drift.mean()),
        "edits_taken": float(taken),
        "others_taken": float(torch.cat([one.taken for one in found]).double().mean()),
        "n": len(edit),
    }
    state.curve.append(record)
    state.adjusted = task.objective.at(state.adjusted).validated(record["edits_taken"]).state()
    if record["loss"] < state.best_loss:
        state.keep_best(record["loss"])
        if folder is not None:
            task.write_best(folder)
