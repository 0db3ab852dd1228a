"""Hooks that somebody else has put on a model's modules.

The sweep calls blocks with tokens packed anew (`tracer.sweep.packing`): a hook that goes by a token's place
would change another one there. The self-test sees hooks that are there at load, none that come later.
"""

from __future__ import annotations

from collections.abc import Iterator

from nnsight.intervention.source import Controller
from torch import nn


def foreign_hooks(model: nn.Module) -> dict[int, str]:
    """Forward hooks that are not the tracer's: torch's number of each -> the path of its module.

    The tracer's own come and go with a trace, in other threads too. nnsight uses none.
    """
    return {
        number: path or type(model).__name__
        for path, module in model.named_modules()
        for number, hook in _hooks(module)
        if not _is_ours(hook)
    }


def has_foreign_forward(module: nn.Module) -> bool:
    """Whether somebody has given a module another forward than its class's.

    nnsight's own, which does nothing outside of its traces, and accelerate's, which moves tensors, are none.
    """
    forward = vars(module).get("forward")
    if isinstance(forward, Controller):
        return forward.state.original is not type(module).forward
    return forward is not None and not hasattr(module, "_hf_hook")


def _hooks(module: nn.Module) -> Iterator[tuple[int, object]]:
    for store in (module._forward_hooks, module._forward_pre_hooks):
        yield from list(store.items())  # a list: other threads put hooks on and take them off


def _is_ours(hook: object) -> bool:
    made = getattr(hook, "func", hook)  # of a partial
    return str(getattr(made, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]
