"""One pass over a few tokens with every module watched: what went in and out, when, who stored keys and values."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tracer.anatomy.hidden import by_token

N_TOKENS = 5


@dataclass
class Watched:
    """What one pass showed, by module path; only modules that ran once count.

    Attributes:
        inputs, outputs: the hidden states of each, [1, token, width].
        began, ended: when, as a running number.
        caches: modules that stored keys and values.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    began: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    caches: set[str] = field(default_factory=set)
    running: list[str] = field(default_factory=list)
    clock: int = 0

    def start(self, path: str, args: tuple, kwargs: dict) -> None:
        """Notes that the module at `path` begins, and the hidden states it is given."""
        self.clock += 1
        self.running.append(path)
        again = path in self.began
        self.began[path] = -1 if again else self.clock
        hidden = _hidden((*args, *kwargs.values()))
        if hidden is not None:
            self.inputs[path] = hidden

    def stop(self, path: str, output: Any) -> None:
        """Notes that the module at `path` has ended, and the hidden states it gives."""
        self.clock += 1
        self.running.pop()
        self.ended[path] = self.clock
        hidden = _hidden(output if isinstance(output, tuple) else (output,))
        if hidden is not None:
            self.outputs[path] = hidden

    def once(self, path: str) -> bool:
        """The module ran, and only once."""
        return self.began.get(path, -1) > 0 and path in self.outputs


class _WatchedCache(DynamicCache):
    """A cache that notes which module stores keys and values."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self.watched = watched

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.watched.running:
            self.watched.caches.add(self.watched.running[-1])
        return super().update(*args, **kwargs)


def watch(model: PreTrainedModel, *, cache: bool) -> Watched:
    """Runs the model once on N_TOKENS tokens, with a plain cache of keys and values or with none."""
    watched = Watched()
    options = {"past_key_values": _WatchedCache(watched)} if cache else {"use_cache": False}
    with ExitStack() as hooks, torch.no_grad():
        for path, module in model.named_modules():
            if path:

                def start(_module: nn.Module, args: tuple, kwargs: dict, path: str = path) -> None:
                    watched.start(path, args, kwargs)

                def stop(_module: nn.Module, _args: tuple, output: Any, path: str = path) -> None:
                    watched.stop(path, output)

                hooks.callback(module.register_forward_pre_hook(start, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(stop).remove)
        ids = torch.arange(1, N_TOKENS + 1, device=model.device)[None]
        decoder = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
        model(input_ids=ids, **decoder, **options)
    return watched


def _hidden(values: tuple) -> Tensor | None:
    """The first of these that can be a hidden state of all tokens, as [1, token, width]."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() in (2, 3):
            hidden = by_token(value, 1)
            if hidden.shape[:2] == (1, N_TOKENS):
                return hidden.to("cpu", copy=True)  # some add to it in place
    return None
