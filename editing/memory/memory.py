"""One memory for all edits of one editor that are attached to a model, and what such an edit is.

    add       apply an edit: its records join the memory; a fact that is there already gets the new answer
    remove    undo it, in any order: its records leave, and an older answer that they hid counts again
    empty     the memory is taken off the model, whose own pass is all that runs

No weight is ever written. What a query reads is decided once, on its prompt alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from editing.attachment import Attachment
from editing.edit import Edit
from editing.memory.record import MemoryRecord, living
from editing.memory.retrieval import Index, Retriever, nearest
from editing.memory.retrievers import DEFAULT, retriever_named
from editing.request import EditRequest, check_requests, listed
from editing.scoring.asking import Route, come_last
from editing.setting_checks import checked_seed
from editing.stopwatch import now
from editing.writing import writing
from tracer.model import LanguageModel
from tracer.model.inputs import without_gap


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryEditor(ABC):
    """What editors with a memory share; each says where a query goes.

    Attributes:
        method: of a subclass, as files name it.
        retriever: the name of what says how near a query is to a record (`editing.memory.retrievers`).
    """

    method: ClassVar[str] = ""
    retriever: str = DEFAULT

    def __init_subclass__(cls, *, method: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if method:
            cls.method = method
            MEMORY_EDITORS[method] = cls

    def __post_init__(self) -> None:
        retriever_named(self.retriever)  # an unknown name fails here, not at the first query

    @abstractmethod
    def routes(self, model: LanguageModel, memory: Memory, prompts: Sequence[str]) -> list[Route | None]:
        """Where each prompt goes; None: the model itself reads it. The memory is not empty."""

    @cached_property
    def _retriever(self) -> Retriever:
        return retriever_named(self.retriever)

    def finder(self) -> Retriever:
        """What says how near a query is to a record."""
        return self._retriever

    def key(self, record: MemoryRecord) -> str:
        """The text by which a record is found."""
        return record.prompt

    def remembered(
        self, model: LanguageModel, requests: Sequence[EditRequest], seed: int
    ) -> list[tuple[MemoryRecord, dict[str, Any]]]:
        """The record of each request, and what to say about it."""
        return [(MemoryRecord.of(request), {}) for request in requests]

    def check_fits(self, model: LanguageModel, record: MemoryRecord) -> None:  # noqa: B027 - most are short
        """Raises EditFailedError where the model's context cannot hold what is read for a query."""

    def check(self, model: LanguageModel, records: Sequence[MemoryRecord]) -> None:  # noqa: B027 - most refuse nothing
        """Raises EditFailedError where the editor cannot serve these records together, or not on this model."""

    def check_file(self) -> None:  # noqa: B027 - most can be kept
        """Raises EditFailedError where no file can hold this editor."""

    def settings(self) -> dict[str, Any]:
        """As JSON has them; `restored` makes the editor of them."""
        return dataclasses.asdict(self)

    def tensors(self) -> dict[str, Tensor]:
        """What was trained, by name."""
        return {}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """From what `settings` and `tensors` gave."""
        return cls(**settings)

    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> Edit:
        """Remembers the requests.

        Args:
            model: that asks the memory from now on; `Edit.undo` takes these records out of it.
            requests: facts to remember; none is no change.
            seed: of whatever is drawn.
            progress: unused; remembering takes a moment.

        Raises:
            RequestError: two requests that contradict each other.
            EditFailedError: the editor cannot serve these records beside those in the memory, or the model's context
                does not hold what is read for one.
        """
        requests, seed = listed(requests), checked_seed(seed)
        check_requests(model, requests)
        begun = now(model)
        held = self.remembered(model, requests, seed)
        for record, _ in held:
            self.check_fits(model, record)
        attachment = Remembered(self, tuple(record for record, _ in held))
        summary = {"retriever": self.finder().name, "persistent_bytes": attachment.size}
        made_by = {"method": self.method, **self.settings(), "seed": seed}
        attachments = (attachment,) if requests else ()
        edit = Edit(tuple(requests), (), made_by, model.fingerprint(), summary=summary, attachments=attachments)
        seconds = (now(model) - begun) / max(1, len(requests))
        about = [{"subject": record.subject, "new": record.new, **told, "seconds": seconds} for record, told in held]
        edit.diagnostics = tuple(about)
        with writing(edit, model, anywhere=True):
            edit.attach_all()
        return edit


MEMORY_EDITORS: dict[str, type[MemoryEditor]] = {}


class Remembered(Attachment, kind="memory"):
    """The records of one edit, with the editor that reads them."""

    branches = False  # it rewrites prompts, and nothing inside the model goes by where they end

    def __init__(self, editor: MemoryEditor, records: tuple[MemoryRecord, ...]) -> None:
        self.editor, self.records = editor, records

    @property
    def size(self) -> int:
        """Bytes that a file needs for it, the frame left out."""
        tensors = self.tensors().values()
        return len(json.dumps(self.about())) + sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def attach(self, model: LanguageModel) -> Callable[[], None]:
        """Adds the records to the memory that edits of the same settings share."""
        found = memory_of(model, self.editor)
        self.editor.check(model, living([*(found.records if found else ()), *self.records]))
        memory = found or Memory(self.editor)
        memory.add(self)
        come_last(model, memory)

        def detach() -> None:
            memory.remove(self)
            if not memory.records:
                model.readers.remove(memory)

        return detach

    @cached_property
    def store(self) -> str:
        """The memory of all edits with these settings."""
        return identity(self.editor)

    def check_file(self) -> None:
        """Raises EditFailedError where no file can hold the editor."""
        self.editor.check_file()

    def tensors(self) -> dict[str, Tensor]:
        """What the editor has trained."""
        return self.editor.tensors()

    def about(self) -> dict[str, Any]:
        """Editor, settings and records."""
        records = [dataclasses.asdict(record) for record in self.records]
        return {"method": self.editor.method, "settings": self.editor.settings(), "records": records}

    @classmethod
    def restored(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """From what `about` and `tensors` gave."""
        editor = MEMORY_EDITORS[about["method"]].restored(about["settings"], tensors)
        return cls(editor, tuple(MemoryRecord(**{**one, "shown": tuple(one["shown"])}) for one in about["records"]))


class Memory:
    """What the attached edits of one editor hold together; it reads prompts before the model does.

    Attributes:
        editor: whose settings all of them have.
        records: those that count, in the order in which their edits were attached.
    """

    def __init__(self, editor: MemoryEditor) -> None:
        self.editor = editor
        self.store = identity(editor)
        self.records: list[MemoryRecord] = []
        self._held: list[Remembered] = []
        self._index: Index | None = None
        self._stale = True

    def add(self, held: Remembered) -> None:
        """Lets these records count, before older ones of the same facts."""
        self._held.append(held)
        self._changed()

    def remove(self, held: Remembered) -> None:
        """Forgets these records; those that came before or after stay."""
        self._held = [other for other in self._held if other is not held]
        self._changed()

    def _changed(self) -> None:
        self.records = living(record for held in self._held for record in held.records)
        self._stale = True

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Similarity of each query to each record's key, [query, record]."""
        if self._stale or self._index is None:
            keys = [without_gap(self.editor.key(record)) for record in self.records]
            self._index = self.editor.finder().index(keys, self._index)
            self._stale = False
        return self._index.scores([without_gap(query) for query in queries])

    def nearest(self, queries: Sequence[str]) -> list[tuple[MemoryRecord, float]]:
        """For each query the record most like it, the first of equals, and how like it is."""
        return [(self.records[place], score) for place, score in nearest(self.scores(queries))]

    def routes(self, model: LanguageModel, prompts: Sequence[str]) -> list[Route | None]:
        """As the editor decides."""
        return self.editor.routes(model, self, prompts) if prompts else []


def memory_of(model: LanguageModel, editor: MemoryEditor) -> Memory | None:
    """The memory on `model` of edits with this editor's settings, if any is attached."""
    found = (reader for reader in model.readers if isinstance(reader, Memory) and reader.store == identity(editor))
    return next(found, None)


def identity(editor: MemoryEditor) -> str:
    """sha256 of method, settings and what was trained."""
    found = hashlib.sha256(json.dumps([editor.method, editor.settings()], sort_keys=True).encode())
    for name, tensor in sorted(editor.tensors().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
