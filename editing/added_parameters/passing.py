"""What a module was last called with, kept for a hook further on in the same pass."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Noted:
    """Watches what enters a module until `remove`; threads that run the model each see their own."""

    def __init__(self, module: nn.Module, note: Callable[[Tensor], Any]) -> None:
        self._note, self._own = note, threading.local()
        self._handle = module.register_forward_pre_hook(self._keep, with_kwargs=True)

    @property
    def value(self) -> Any:
        """What `note` gave of the module's first input in this thread's last pass."""
        return self._own.value

    def remove(self) -> None:
        """Ends the watch."""
        self._handle.remove()

    def _keep(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._own.value = self._note(args[0] if args else next(iter(kwargs.values())))
