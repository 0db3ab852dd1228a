"""The frame around an edit that is being made: all of it is written, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from editing.edit import Edit
from editing.errors import BaseModelError
from tracer.model import LanguageModel


def check_one_device(model: LanguageModel) -> None:
    """Raises BaseModelError for a model that lies on several devices."""
    devices = sorted({str(parameter.device) for parameter in model.torch.parameters()} - {"meta"})
    if len(devices) > 1:
        raise BaseModelError(
            f"{model.name} lies on {', '.join(devices)}; this editor looks for its change on one. Load the model with "
            f"device={devices[-1]!r}. A saved change of weights is written where each weight lies."
        )


@contextmanager
def editable(model: LanguageModel) -> Iterator[None]:
    """Eval mode, for dropout after W would break W' k* = v*; gradients on, whatever mode the caller is in.

    Raises:
        BaseModelError: the model lies on several devices.
    """
    check_one_device(model)
    with _evaluating(model):
        yield


@contextmanager
def _evaluating(model: LanguageModel) -> Iterator[None]:
    model.torch.eval()
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def writing(edit: Edit, model: LanguageModel, *, anywhere: bool = False) -> Iterator[None]:
    """Starts `edit` on `model`, in eval mode and with gradients; undoes it when the block fails.

    Args:
        edit: empty as yet.
        model: that it is made on.
        anywhere: the model may lie on several devices, for nothing is looked for inside it.

    Raises:
        BaseModelError: the model lies on several devices, and may not.
    """
    with _evaluating(model) if anywhere else editable(model):
        edit.start(model)
        try:
            yield
        except BaseException:
            edit.undo()
            raise
