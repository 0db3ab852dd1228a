"""Hooks that stay in their own thread, and a hook that changes what a module puts out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from tracer.anatomy.hidden import by_token, hidden_of, with_hidden

# Of the batch: a sub-layer that flattens rows and tokens does not say. Each thread has its own.
rows_that_run: ContextVar[int] = ContextVar("rows_that_run", default=1)


def only_here(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, asleep in every other thread: modules are shared, what a thread puts on them is its own."""
    owner = threading.get_ident()

    def own(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if threading.get_ident() == owner else None

    return own


@contextmanager
def output_changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While the block runs, `module` returns `change(hidden)` in place of its hidden states [row, token, width]."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        changed = change(by_token(hidden, rows_that_run.get())).reshape(hidden.shape)
        return with_hidden(output, changed.contiguous())  # Falcon goes on to add to it in place

    handle = module.register_forward_hook(only_here(hook))
    try:
        yield
    finally:
        handle.remove()
