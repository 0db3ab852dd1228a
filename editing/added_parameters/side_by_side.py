"""What editors share that train the values of several requests side by side: an edit for each request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Generic, Literal, TypeVar

from editing.added_parameters.attaching import started
from editing.edit import Edit, undo_all
from editing.request import EditRequest, check_model, check_requests, listed
from editing.setting_checks import checked_seed
from editing.writing import editable
from tracer.model import LanguageModel

Learnt = TypeVar("Learnt")
# One edit of all; an edit of each, after those before it; an edit of each, as if there were no others.
Company = Literal["together", "in turn", "alone"]
AT_ONCE = 16  # requests of a group: each adds the logits of its answer to memory


class SideBySide(ABC, Generic[Learnt]):
    """Trains requests in groups, and makes one edit of them or one of each."""

    method: ClassVar[str]

    def each(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> list[Edit]:
        """An edit for each request alone, none of them applied; what they add is trained side by side.

        Arguments and errors are those of `apply`, but that requests may contradict each other.
        """
        edits = []
        for edit in self._edits(model, requests, seed, progress, "alone"):
            edit.undo()
            edits.append(edit)
        return edits

    def in_turn(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> list[Edit]:
        """As `each`, every edit made as if those before it were applied: apply them in this order, each once."""
        edits = []
        try:
            for edit in self._edits(model, requests, seed, progress, "in turn"):
                edits.append(edit)
        finally:
            undo_all(edits)
        return edits

    def _together(
        self, model: LanguageModel, requests: Sequence[EditRequest], seed: int, progress: bool | None
    ) -> Edit:
        """One applied edit of all requests."""
        check_model(model)
        self._check_place(model)
        seed = checked_seed(seed)
        with started(model, requests, self._about(seed)) as edit:
            if edit.requests:
                self._finish(edit, self._learnt(model, edit.requests, seed, progress, "together"))
        return edit

    def _edits(
        self, model: LanguageModel, requests: Sequence[EditRequest], seed: int, progress: bool | None, company: Company
    ) -> Iterator[Edit]:
        """An applied edit of each request."""
        requests, seed = listed(requests), checked_seed(seed)
        check_model(model)
        self._check_place(model)
        for request in requests:  # they may contradict each other
            check_requests(model, [request])
        with editable(model):
            learnt = self._learnt(model, requests, seed, progress, company)
        for request, one in zip(requests, learnt, strict=True):
            with started(model, [request], self._about(seed)) as edit:
                self._finish(edit, [one])
            yield edit

    def _about(self, seed: int) -> dict[str, Any]:
        settings: Any = self
        return {"method": self.method, **asdict(settings), "seed": seed}

    @abstractmethod
    def _check_place(self, model: LanguageModel) -> None:
        """Raises where the model has nothing that this editor could stand beside."""

    @abstractmethod
    def _learnt(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        seed: int,
        progress: bool | None,
        company: Company,
    ) -> list[Learnt]:
        """What is trained for each request."""

    @abstractmethod
    def _finish(self, edit: Edit, learnt: Sequence[Learnt]) -> None:
        """Attaches what was trained for the edit's requests and fills in its diagnostics."""
