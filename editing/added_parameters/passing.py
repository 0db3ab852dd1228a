"""What a module, or a whole model, was called with, kept for a hook further on in the same pass."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn
from transformers import PreTrainedModel

from editing.errors import EditFailedError
from tracer.sweep.recording import by_name


class OfOneModel:
    """What hooks of one model share: a copy of the model would go on asking the original's."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        raise EditFailedError("A model cannot be copied while an edit stands beside its weights. Undo it, copy, apply.")


class Noted(OfOneModel):
    """Watches what enters a module until `remove`; threads that run the model each see their own."""

    def __init__(self, module: nn.Module, note: Callable[[Tensor], Any]) -> None:
        self._note, self._own = note, threading.local()
        self._handle = module.register_forward_pre_hook(self._keep, with_kwargs=True)

    @property
    def value(self) -> Any:
        """What `note` gave of the module's first input in this thread's last pass."""
        return self._own.value

    def remove(self) -> None:
        """Takes the hook off; nothing is noted any more."""
        self._handle.remove()

    def _keep(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._own.value = self._note(args[0] if args else next(iter(kwargs.values())))


class Padding(OfOneModel):
    """Watches which tokens of a model's passes are padding until `remove`; threads each see their own.

    It goes by an `attention_mask` of [row, token] that the language model or its stack of blocks is called with; any
    other tells nothing.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._own = threading.local()
        self._handles = []
        for module in (model, model.base_model):  # OPT's own pass goes by its stack
            self._handles.append(module.register_forward_pre_hook(self._begin, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._end, always_call=True))

    @property
    def mask(self) -> Tensor | None:
        """Of the pass that runs in this thread: 1 for tokens, 0 for padding, [row, token], a cache's included.

        None where none runs, or nothing was said.
        """
        return getattr(self._own, "mask", None)

    def remove(self) -> None:
        """Takes the hook off; nothing is noted any more."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        mask = by_name(type(module).forward, module, args, kwargs).get("attention_mask")
        self._own.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def _end(self, *_: object) -> None:
        self._own.mask = None
