"""What editors share that train the values of several requests side by side: an edit for each request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from editing.edit import Edit, undo_all
from editing.request import EditRequest
from tracer.model import LanguageModel


class SideBySide(ABC):
    """Edits of one request each, computed together."""

    def each(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> list[Edit]:
        """An edit for each request alone, none of them applied; what they add is trained side by side.

        Takes and raises what `apply` does, and requests that contradict each other; `edit.apply(model)` writes one.
        """
        edits = []
        for edit in self._edits(model, requests, seed, progress, alone=True):
            edit.undo()
            edits.append(edit)
        return edits

    def in_turn(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> list[Edit]:
        """As `each`, every edit made as if those before it were applied, and to be applied after them."""
        edits = []
        try:
            for edit in self._edits(model, requests, seed, progress, alone=False):
                edits.append(edit)
        finally:
            undo_all(edits)
        return edits

    @abstractmethod
    def _edits(
        self, model: LanguageModel, requests: Sequence[EditRequest], seed: int, progress: bool | None, *, alone: bool
    ) -> Iterator[Edit]:
        """An applied edit of each request; `alone`: found as if there were no others."""
