"""What was written: changes of weights, or what was put beside them; undone and applied again.

Undo puts the old values back bit for bit: subtracting a change would not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editing.attachment import Attachment
from editing.change import Change
from editing.errors import BaseModelError, EditFailedError, EditOrderError, RequestError
from editing.generating import watch_generate
from editing.request import EditRequest, check_model
from tracer.model import LanguageModel

if TYPE_CHECKING:
    from editing.lora import Adapter


@dataclass(frozen=True)
class Written:
    """What became of a change in the weight's own type.

    Attributes:
        relative_change: |D| / |W|, W as it was before the edit.
        lost_by_rounding: ||cast(W + D) - (W + D)|| / ||D||.
    """

    relative_change: float
    lost_by_rounding: float


@dataclass(eq=False)
class Edit:
    """What makes a model answer otherwise, with what it was made from.

    Usable as a context manager while it is applied: it is undone when the block ends, also by an exception; so
    are later changes of the same weight that were made inside the block.

    Attributes:
        requests: the facts written.
        changes: in the order in which they are made.
        editor: the method's name and settings.
        base: fingerprint of the model before the edit.
        diagnostics: one record a request: norms, losses, times.
        kept: tensors that later edits of the same method need, by name.
        summary: of the edit as a whole: change of each weight, statistics, seconds a step; what a method has to say.
        attachments: what stands beside the weights, in the order in which it is attached.
        model: the model it is applied to now, or None.
        original: fingerprint of that model without any edit.
        beside: what was applied, in words, when it was made.
        before: the changed weights as they were, while the edit is applied.
    """

    requests: tuple[EditRequest, ...]
    changes: tuple[Change, ...]
    editor: Mapping[str, Any]
    base: str
    diagnostics: tuple[Mapping[str, Any], ...] = ()
    kept: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    summary: Mapping[str, Any] = field(default_factory=dict)
    attachments: tuple[Attachment, ...] = ()
    model: LanguageModel | None = None
    original: str = ""
    beside: str = ""
    before: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _detachers: list[Callable[[], None]] = field(default_factory=list, repr=False)

    @property
    def applied_to(self) -> LanguageModel:
        """The model it is applied to.

        Raises:
            EditFailedError: it is not applied.
        """
        if self.model is None:
            raise EditFailedError("This edit is not applied. Write edit.apply(model) first.")
        return self.model

    def apply(self, model: LanguageModel) -> Edit:
        """Adds the changes to `model`'s weights, and attaches the rest.

        Raises:
            BaseModelError: these are not the weights the edit was made for.
            EditFailedError: it is applied already.
        """
        check_model(model)
        if self.model is not None:
            raise EditFailedError("This edit is applied already. Undo it first, or load it again from its file.")
        found = model.fingerprint()
        if found != self.base:
            raise BaseModelError(
                f"This edit was made for weights {self.base[:12]}; {model.name} has {found[:12]}. Load the model "
                f"it was made for, in the same dtype. Then it had {self.beside or 'no edits'}, now it "
                f"has {_titles(model.edits) or 'none'}: the same ones must be applied, in the same order."
            )
        self.start(model)
        try:
            for change in self.changes:
                self.write(change)
            self.attach_all()
        except BaseException:
            self.undo()
            raise
        return self

    def start(self, model: LanguageModel) -> None:
        """Registers the edit with `model`, before its first write."""
        self.model, self.original = model, model.edits[0].original if model.edits else self.base
        self.beside = _titles(model.edits)
        model.edits.append(self)

    def write(self, change: Change) -> Written:
        """Makes one change of the weights.

        Raises:
            EditFailedError: the change is not finite, or rounding leaves the weight as it was.
        """
        delta = change.delta(self.applied_to)
        parameter = self.applied_to.torch.get_parameter(change.weight)
        if not torch.isfinite(delta).all():
            raise EditFailedError(f"The change of {change.weight} is NaN or infinite. Nothing was written.")
        before = self.before.setdefault(change.weight, parameter.detach().clone())
        wanted = parameter.detach().double() + delta
        rounded = wanted.to(parameter.dtype)
        if delta.any() and torch.equal(rounded, parameter):
            raise EditFailedError(
                f"The change of {change.weight} is lost in {parameter.dtype}: no entry changes. Load float32."
            )
        with torch.no_grad():
            parameter.copy_(rounded)
        norm, lost = delta.norm(), (rounded.double() - wanted).norm()
        return Written(float(norm / before.double().norm()), float(lost / norm) if norm else 0.0)

    def attach_all(self) -> None:
        """Puts the attachments on the model."""
        if self.attachments:
            self._detachers.append(watch_generate(self.applied_to))
        for attachment in self.attachments:
            self._detachers.append(attachment.attach(self.applied_to))

    def detach_all(self) -> None:
        """Takes them off, the last one first."""
        while self._detachers:
            self._detachers.pop()()

    def digest(self) -> str:
        """Of what is attached now; "" where nothing is. Weights speak for themselves."""
        return "".join(attachment.digest for attachment in self.attachments) if self._detachers else ""

    def undo(self) -> None:
        """Puts the old weights back, bit for bit, and detaches the rest. An edit that is not applied stays as it is.

        Raises:
            EditOrderError: a later edit of the same weight is still applied.
        """
        if self.model is None:
            return
        blocking = self._blocking()
        if blocking:
            raise EditOrderError(
                f"{len(blocking)} later edit(s) stand on the same weights and must be undone first, the last first: "
                f"{'; '.join(edit.title for edit in reversed(blocking))}."
            )
        moved = self._moved()
        self.detach_all()
        with torch.no_grad():
            for name, before in self.before.items():
                self.model.torch.get_parameter(name).copy_(before)
        self.model.edits.remove(self)
        self.model, self.before = None, {}
        attach_anew(moved)

    def _moved(self) -> list[Edit]:
        """Edits to attach anew once this one is undone: those after the latest other edit of a store that it shares.

        A store stands where its latest edit does, so that equal stacks of edits answer alike, however they came about.
        """
        if self.model is None or not self._detachers:
            return []
        stores, others = {one.store for one in self.attachments} - {""}, [*self.model.edits]
        number = others.index(self)
        others.remove(self)
        sharing = [at for at, edit in enumerate(others) if stores & {one.store for one in edit.attachments}]
        if not sharing or sharing[-1] >= number:  # nothing is left of the store, or a later edit holds it there
            return []
        return [edit for edit in others[sharing[-1] + 1 :] if edit._detachers]

    def _blocking(self) -> list[Edit]:
        """Edits applied after this one that must be undone before it, the first one first.

        They change a weight that it changed, or one that such an edit changed.
        """
        if self.model is None:
            return []
        names, blocking = set(self.before), []
        for edit in self.model.edits[self.model.edits.index(self) + 1 :]:
            if names & edit.before.keys():
                blocking.append(edit)
                names |= edit.before.keys()
        return blocking

    def __enter__(self) -> Edit:
        if self.model is None:
            raise EditFailedError(
                "This edit is not applied, so the block would run without it. Write with edit.apply(model): ..."
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for later in reversed(self._blocking()):  # made inside the block
            later.undo()
        self.undo()

    @property
    def method(self) -> str:
        """What made it, as the literature writes it."""
        return str(self.editor.get("method"))

    @property
    def title(self) -> str:
        """The requests in a few words."""
        said = [f"{request.subject} -> {request.new.strip()}" for request in self.requests]
        return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")

    def __repr__(self) -> str:
        state = f"applied to {self.model.name}" if self.model else "not applied"
        return f"Edit({self.method}: {self.title}; {state})"

    def merge(self, folder: str | Path) -> Path:
        """Writes the edited model into a new folder, as `editing.merge`."""
        from editing.model_folder import merge  # which builds on this module

        return merge(self, folder)

    def to_peft(self, folder: str | Path, *, model: LanguageModel | None = None, rank: int | None = None) -> Adapter:
        """Writes a LoRA adapter into a new folder, as `editing.to_peft`."""
        from editing.lora import to_peft  # which builds on this module

        return to_peft(self, folder, model=model, rank=rank)

    def save(self, path: str | Path) -> None:
        """Writes changes and attachments to one safetensors file, atomically; `editing.load_edit` reads it."""
        from editing.edit_file import write_edit  # which builds on this module

        write_edit(self, path)


def _titles(edits: Sequence[Edit]) -> str:
    """How many edits, and the last three of them in their order; "" for none."""
    last = "; ".join(edit.title for edit in edits[-3:])
    return f"{len(edits)} edit(s) ({'... ' if len(edits) > 3 else ''}{last})" if edits else ""


def undo_all(edits: Sequence[Edit]) -> None:
    """Undoes edits in the order that is allowed: the last applied first.

    Raises:
        RequestError: one edit in place of a sequence.
    """
    if isinstance(edits, Edit):
        raise RequestError("undo_all takes a sequence. Write edit.undo(), or undo_all([edit]).")
    models = {id(edit.model): edit.model for edit in edits if edit.model is not None}
    for model in models.values():
        for edit in reversed(model.edits):
            if edit in edits:
                edit.undo()


def original_fingerprint(model: LanguageModel) -> str:
    """Fingerprint of the model without its edits."""
    return model.edits[0].original if model.edits else model.fingerprint()


@contextlib.contextmanager
def unedited(model: LanguageModel) -> Iterator[None]:
    """The model as it was before every edit, while the block runs."""
    original: dict[str, Tensor] = {}
    attached = [edit for edit in model.edits if edit._detachers]
    for edit in model.edits:
        for name, before in edit.before.items():
            original.setdefault(name, before)
    now = {name: model.torch.get_parameter(name).detach().clone() for name in original}
    _put(model, original)
    for edit in attached:
        edit.detach_all()
    try:
        yield
    finally:
        _put(model, now)
        attach_anew(attached)


def attach_anew(edits: Sequence[Edit]) -> None:
    """Puts what these edits have beside the weights on their models again, in their order, after all that is there."""
    for edit in edits:
        edit.detach_all()
    for edit in edits:
        edit.attach_all()


def _put(model: LanguageModel, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            model.torch.get_parameter(name).copy_(value)
