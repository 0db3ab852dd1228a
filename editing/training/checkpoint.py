"""A training as far as it has come, in one file: network, optimiser and what it changes beside them belong together.

A folder holds
    state.safetensors    what going on needs                 curve.jsonl      losses of every step
    editor.safetensors   the best network so far             training.json    what is trained, on what
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editing.errors import RequestError
from tracer.continuing import read_same
from tracer.errors import FileFormatError
from tracer.storage import atomic_path, read_about, read_tensors, to_json, write_json, write_tensors

STATE, EDITOR, CURVE, ABOUT = "state.safetensors", "editor.safetensors", "curve.jsonl", "training.json"


@dataclass(eq=False)
class State:
    """Where a training is.

    Attributes:
        network, optimiser: as they are now.
        adjusted: numbers that training changes beside them, by name (the price of a constraint).
        step: steps taken.
        best_step, best_loss: of the best validation.
        best: the network's tensors there.
        skipped: passes whose gradient was not finite.
        seconds: of training, validation and writing.
        curve: one record a step and a validation, which says so: "validation": True.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    adjusted: dict[str, float] = field(default_factory=dict)
    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    skipped: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def validations(self) -> list[dict[str, Any]]:
        """Their records, the first one first."""
        return [record for record in self.curve if record.get("validation")]

    @property
    def best_record(self) -> dict[str, Any]:
        """Of the best validation."""
        return next(record for record in self.validations if record["step"] == self.best_step)

    def keep_best(self, loss: float) -> None:
        """Remembers the network as it is."""
        self.best_step, self.best_loss = self.step, loss
        self.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}


NUMBERS = ("step", "best_step", "best_loss", "skipped", "seconds")


def check_same_training(folder: Path, about: Mapping[str, Any], subjects: Mapping[str, Sequence[str]]) -> None:
    """Writes what is trained into a new folder; of an old one sees that it is the same.

    Raises:
        RequestError: the folder holds another training.
        FileFormatError: what it says is damaged.
    """
    wanted = json.loads(to_json(about))
    if read_same(folder / ABOUT, wanted, what="training", error=RequestError) is None:
        write_json(folder / ABOUT, {**wanted, "subjects": subjects})


def save_state(folder: Path, state: State) -> None:
    """Writes the state, whole or not at all; the curve goes first and may run ahead of it."""
    with atomic_path(folder / CURVE) as temporary:
        temporary.write_text("".join(to_json(record) + "\n" for record in state.curve), encoding="utf-8")
    tensors = {f"network/{name}": tensor for name, tensor in state.network.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in state.best.items()}
    for number, slots in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{number}/{name}": tensor for name, tensor in slots.items()}
    numbers = {name: getattr(state, name) for name in NUMBERS}
    write_tensors(folder / STATE, tensors, {"kind": "training", **numbers, "adjusted": state.adjusted})


def resume(folder: Path, state: State) -> None:
    """Takes up what `save_state` wrote, if anything, and removes what it was writing when it was killed.

    Raises:
        FileFormatError: a file is damaged, or the curve is lost.
    """
    for half in (half for name in (STATE, EDITOR, CURVE, ABOUT) for half in folder.glob(f".{name}.*")):
        half.unlink()
    if not (folder / STATE).exists():
        return
    tensors, about = read_tensors(folder / STATE, "training")
    state.network.load_state_dict(_under("network/", tensors))
    state.best = _under("best/", tensors)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimiser/", tensors).items():
        number, _, slot = name.partition("/")
        slots.setdefault(int(number), {})[slot] = tensor
    groups = state.optimiser.state_dict()["param_groups"]
    state.optimiser.load_state_dict({"state": slots, "param_groups": groups})
    for name in NUMBERS:
        setattr(state, name, math.inf if about[name] is None else about[name])  # JSON has no infinity
    state.adjusted = dict(about["adjusted"])
    state.curve = [record for record in _curve(folder / CURVE, state.step) if record["step"] <= state.step]


def _curve(path: Path, steps: int) -> list[dict[str, Any]]:
    """The records of a curve that goes as far as `steps` at least."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if found[-1]["step"] < steps:
            raise ValueError(f"it ends before step {steps}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FileFormatError(
            f"{path} is lost or damaged ({error}), and {STATE} goes on from it. Remove {STATE} to begin anew, or give "
            f"this training a folder of its own."
        ) from error
    return found


def training_spent(trained: str | Path) -> tuple[float | None, int | None]:
    """Seconds of a training and bytes of what it has left; None for what is not known.

    Args:
        trained: its folder, or the file of what was trained, beside which its state may lie.
    """
    path = Path(trained)
    path = path / EDITOR if path.is_dir() else path
    seconds = None
    if path.name == EDITOR and (path.parent / STATE).is_file():
        seconds = float(read_about(path.parent / STATE, "training")["seconds"])
    return seconds, path.stat().st_size if path.is_file() else None


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
