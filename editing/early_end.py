"""Forward passes that end once all that is asked for has been read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import nn

Hooked = tuple[nn.Module, Callable[..., None]]


class PassEnded(Exception):  # noqa: N818 - no error: it ends a pass early
    """Raised by a hook inside `ending_early`."""


@contextmanager
def ending_early() -> Iterator[None]:
    """The pass inside the block may raise `PassEnded`."""
    try:
        yield
    except PassEnded:
        return


@contextmanager
def hooked_until(hooks: Sequence[Hooked]) -> Iterator[None]:
    """Forward hooks on modules; the pass inside the block stops after the last of them."""

    def stop(*_: object) -> None:
        raise PassEnded

    with ExitStack() as stack:
        for module, hook in (*hooks, (hooks[-1][0], stop)):
            stack.callback(module.register_forward_hook(hook).remove)
        with ending_early():
            yield
