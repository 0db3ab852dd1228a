"""GradDrop: backward passes in which nothing flows back through what one layer's sub-layers add.

Where a site acts on the answer along two paths of opposite sign, first-order estimates may cancel
though the effects do not. With each layer l dropped in turn, some estimate lacks one of the paths:
    GradDrop(z) = mean over l of |estimate(z), l dropped|
(Kramar et al. 2024, arXiv:2403.00745).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tracer.anatomy import Anatomy
from tracer.anatomy.hidden import hidden_of, with_hidden


class Drops:
    """Which layer's sub-layers are closed to gradients; none while `layer` is None."""

    def __init__(self) -> None:
        self.layer: int | None = None

    @contextmanager
    def put_on(self, anatomy: Anatomy) -> Iterator[None]:
        """A forward pass in this block can be dropped from. Hooks put on before see gradients already dropped."""
        with ExitStack() as hooks:
            for layer in range(anatomy.n_layers):
                for sub_layer in ("attn", "mlp"):
                    module = anatomy.site_module(sub_layer, layer)
                    hooks.callback(module.register_forward_hook(partial(self._gate, layer)).remove)
            yield

    def _gate(self, layer: int, _module: nn.Module, _args: Any, output: Any) -> Any:
        added = hidden_of(output).clone()
        added.register_hook(partial(self._dropped, layer))
        return with_hidden(output, added)

    def _dropped(self, layer: int, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient) if layer == self.layer else gradient
