"""What was written: rank-one changes of weights that can be undone, saved and applied again.

    W' = W + out into^T
Undo puts the old values back bit for bit: subtracting a change would not. A saved edit holds the
factors alone, a few kilobytes, and the fingerprint of the weights it was made for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from editing.errors import BaseModelError, EditFailedError, EditOrderError
from editing.request import EditRequest
from tracer.anatomy import is_stored_transposed
from tracer.errors import FileFormatError
from tracer.model import LanguageModel
from tracer.storage import read_tensors, write_tensors

FORMAT = 1


@dataclass(frozen=True, eq=False)
class RankOne:
    """A change of one weight, out into^T in the orientation y = W k, float64.

    Attributes:
        weight: the parameter's name.
        out: [d_model].
        into: [d_mlp].
    """

    weight: str
    out: Tensor
    into: Tensor

    def delta(self, model: LanguageModel) -> Tensor:
        """The change as it is added to the stored parameter, float64 on its device."""
        module, _, _ = self.weight.rpartition(".")
        parameter = writable(model, self.weight)
        out, into = (side.to(parameter.device, torch.float64) for side in (self.out, self.into))
        transposed = is_stored_transposed(model.torch.get_submodule(module))
        change = torch.outer(into, out) if transposed else torch.outer(out, into)
        if change.shape != parameter.shape:
            raise BaseModelError(f"{self.weight} is {tuple(parameter.shape)}, the edit's change {tuple(change.shape)}.")
        return change


def writable(model: LanguageModel, weight: str) -> Tensor:
    """The parameter of that name.

    Raises:
        BaseModelError: the model has none, or what is written to it would be lost or coarse: it is
            quantised to integers, or offloaded and read anew from elsewhere for each pass.
    """
    try:
        parameter = model.torch.get_parameter(weight)
    except AttributeError as error:
        raise BaseModelError(f"{model.name} has no weight {weight!r}, which this edit changes.") from error
    if parameter.is_meta:
        raise BaseModelError(f"{weight} is offloaded: a change would be lost. Load the model without offloading.")
    if not parameter.is_floating_point():
        kind = str(parameter.dtype).removeprefix("torch.")
        raise BaseModelError(f"{weight} is quantised ({kind}). Load the model unquantised, in float32 or bfloat16.")
    return parameter


@dataclass(eq=False)
class Edit:
    """Changes of a model's weights, with what they were made from.

    Usable as a context manager: the changes are undone when the block ends, also by an exception; so are
    later ones of the same weight that were made inside the block.

    Attributes:
        requests: the facts written.
        changes: rank-one changes, in the order in which they are added.
        editor: the method's name and settings.
        base: fingerprint of the weights before the edit.
        diagnostics: one record a request: norms, losses, times.
        model: the model it is applied to now, or None.
        before: the changed weights as they were, while the edit is applied.
    """

    requests: tuple[EditRequest, ...]
    changes: tuple[RankOne, ...]
    editor: Mapping[str, Any]
    base: str
    diagnostics: tuple[Mapping[str, Any], ...] = ()
    model: LanguageModel | None = None
    before: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def apply(self, model: LanguageModel) -> Edit:
        """Adds the changes to `model`'s weights.

        Raises:
            BaseModelError: these are not the weights the edit was made for.
            EditFailedError: it is applied already.
        """
        if self.model is not None:
            raise EditFailedError("This edit is applied already. Undo it first, or load it again from its file.")
        found = model.fingerprint()
        if found != self.base:
            raise BaseModelError(
                f"This edit was made for weights {self.base[:12]}; {model.name} has {found[:12]}. Load the model "
                f"it was made for, in the same dtype and with no other edit applied."
            )
        self.start(model)
        try:
            for change in self.changes:
                self.write(change)
        except BaseException:
            self.undo()
            raise
        return self

    def start(self, model: LanguageModel) -> None:
        """Registers the edit with `model`, before its first write."""
        self.model = model
        model.edits.append(self)

    def write(self, change: RankOne) -> float:
        """Adds one change to the weights.

        Returns:
            The share of the change lost by rounding to the weight's type, ||cast(W + D) - (W + D)|| / ||D||.

        Raises:
            EditFailedError: the change is not finite, or rounding leaves the weight as it was.
        """
        assert self.model is not None
        delta = change.delta(self.model)
        parameter = self.model.torch.get_parameter(change.weight)
        if not torch.isfinite(delta).all():
            raise EditFailedError(f"The change of {change.weight} is NaN or infinite. Nothing was written.")
        self.before.setdefault(change.weight, parameter.detach().clone())
        wanted = parameter.detach().double() + delta
        rounded = wanted.to(parameter.dtype)
        if delta.any() and torch.equal(rounded, parameter):
            raise EditFailedError(
                f"The change of {change.weight} is lost in {parameter.dtype}: no entry changes. Load float32."
            )
        with torch.no_grad():
            parameter.copy_(rounded)
        norm = delta.norm()
        return float((rounded.double() - wanted).norm() / norm) if norm else 0.0

    def undo(self) -> None:
        """Puts the old weights back, bit for bit. An edit that is not applied stays as it is.

        Raises:
            EditOrderError: a later edit of the same weight is still applied.
        """
        if self.model is None:
            return
        blocking = self._blocking()
        if blocking:
            raise EditOrderError(
                f"{len(blocking)} later edit(s) change the same weight and must be undone first, the last one first: "
                f"{'; '.join(edit.title for edit in reversed(blocking))}."
            )
        with torch.no_grad():
            for name, before in self.before.items():
                self.model.torch.get_parameter(name).copy_(before)
        self.model.edits.remove(self)
        self.model, self.before = None, {}

    def _blocking(self) -> list[Edit]:
        """Edits applied after this one that change a weight it changed, the first one first."""
        if self.model is None:
            return []
        later = self.model.edits[self.model.edits.index(self) + 1 :]
        return [edit for edit in later if edit.before.keys() & self.before.keys()]

    def __enter__(self) -> Edit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for later in reversed(self._blocking()):  # made inside the block on the same weights
            later.undo()
        self.undo()

    @property
    def title(self) -> str:
        """The requests in a few words."""
        said = [f"{request.subject} -> {request.new.strip()}" for request in self.requests]
        return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")

    def __repr__(self) -> str:
        state = f"applied to {self.model.name}" if self.model else "not applied"
        return f"Edit({self.editor.get('method')}: {self.title}; {state})"

    def save(self, path: str | Path) -> None:
        """Writes the changes' factors to one safetensors file, atomically."""
        tensors = {}
        for number, change in enumerate(self.changes):
            tensors[f"{number}/out"], tensors[f"{number}/into"] = change.out, change.into
        about = {
            "kind": "edit",
            "format": FORMAT,
            "base": self.base,
            "weights": [change.weight for change in self.changes],
            "requests": [dataclasses.asdict(request) for request in self.requests],
            "editor": dict(self.editor),
            "diagnostics": [dict(record) for record in self.diagnostics],
        }
        write_tensors(path, tensors, about)


def load_edit(path: str | Path) -> Edit:
    """Reads a saved edit; `.apply(model)` writes it.

    Raises:
        FileFormatError: the file is missing, truncated or something else.
    """
    tensors, about = read_tensors(path, "edit")
    try:
        changes = tuple(
            RankOne(str(weight), tensors[f"{number}/out"], tensors[f"{number}/into"])
            for number, weight in enumerate(about["weights"])
        )
        requests = tuple(EditRequest(**request) for request in about["requests"])
        edit = Edit(requests, changes, dict(about["editor"]), str(about["base"]), tuple(about["diagnostics"]))
        vectors = [side for change in changes for side in (change.out, change.into)]
        whole = len(tensors) == len(vectors) and all(v.dim() == 1 and torch.isfinite(v).all() for v in vectors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{path} is an edit of another version: {error}. Make it again.") from error
    if about["format"] != FORMAT or not whole or len(changes) < len(requests):
        raise FileFormatError(f"{path} is damaged or of another version. Make the edit again.")
    return edit


def undo_all(edits: Sequence[Edit]) -> None:
    """Undoes edits of one model in the order that is allowed: the last applied first."""
    models = {id(edit.model): edit.model for edit in edits if edit.model is not None}
    for model in models.values():
        for edit in reversed(model.edits):
            if edit in edits:
                edit.undo()


@contextlib.contextmanager
def unedited(model: LanguageModel) -> Iterator[None]:
    """The model's weights as they were before every edit, while the block runs."""
    original: dict[str, Tensor] = {}
    for edit in model.edits:
        for name, before in edit.before.items():
            original.setdefault(name, before)
    now = {name: model.torch.get_parameter(name).detach().clone() for name in original}
    _put(model, original)
    try:
        yield
    finally:
        _put(model, now)


def _put(model: LanguageModel, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            model.torch.get_parameter(name).copy_(value)
