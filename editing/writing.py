"""The frame around an edit that is being made: all of it is written, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from editing.edit import Edit
from editing.locate_then_edit.settings import editable
from tracer.model import LanguageModel


@contextmanager
def writing(edit: Edit, model: LanguageModel) -> Iterator[None]:
    """Starts `edit` on `model`, in eval mode and with gradients; undoes it when the block fails."""
    with editable(model):
        edit.start(model)
        try:
            yield
        except BaseException:
            edit.undo()
            raise
