"""The frame around an edit that is being made: all of it is written, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from editing.edit import Edit
from tracer.model import LanguageModel


@contextmanager
def editable(model: LanguageModel) -> Iterator[None]:
    """Eval mode, for dropout after W would break W' k* = v*; gradients on, whatever mode the caller is in."""
    model.torch.eval()
    with torch.inference_mode(False), torch.enable_grad():
        yield


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
