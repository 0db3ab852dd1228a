"""The runs that edges are scored and patched from: clean, corrupted, in between, and with one input changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tracer.anatomy.hidden import hidden_of
from tracer.answer import probability
from tracer.errors import AnatomyError
from tracer.first_order.edge_scores import Edge, EdgeMetric, Input, Node
from tracer.first_order.heads import PROJECTIONS, Heads
from tracer.first_order.prepared import Prepared


class EdgeRuns:
    """Clean and corrupted runs of a fact, and those in between and patched.

    Attributes:
        added: clean - corrupted of what each node writes, [sample, token, d_model].
        clean, corrupted: the metric, of the clean run, and of each corrupted one [sample].
        answer: the token that it is about.
    """

    def __init__(self, prepared: Prepared, heads: Heads, metric: EdgeMetric) -> None:
        self.prepared, self.heads, self.anatomy = prepared, heads, heads.anatomy
        self._metric: Callable[[Tensor, int], Tensor] = probability if metric == "probability" else _logit
        self.n_layers, self.samples = self.anatomy.n_layers, prepared.plan.samples
        self.added: dict[Node, Tensor] = {}
        self._embedded = torch.empty(0)
        with torch.no_grad():
            logits, final = self._both()
        self.answer = prepared.answer_id(logits[0])
        measured = self._metric(logits, self.answer)
        self.clean, self.corrupted = float(measured[0]), measured[1:]
        total = torch.stack(list(self.added.values())).sum(0)
        if not torch.allclose(total, final, atol=1e-3 * float(final.abs().max()), rtol=0):
            raise AnatomyError(
                f"The heads and MLPs of {prepared.model.name} do not add up to its residual stream, so it has no edges."
            )

    def _both(self) -> tuple[Tensor, Tensor]:
        """Logits of clean and corrupted rows; fills `added`; clean - corrupted at the final norm."""
        values: dict[Node, Tensor] = {}
        final: list[Tensor] = []

        def keep_embedded(embedded: Tensor) -> Tensor:
            self._embedded = self.prepared.corrupted(embedded)
            return self._embedded

        with ExitStack() as hooks:
            for layer, block in enumerate(self.anatomy.blocks):
                if layer == 0:
                    hooks.callback(_before(block, partial(values.__setitem__, Node("embedding"))))
                hooks.callback(_before(self.heads.output(layer), partial(self._keep_heads, values, layer)))
                mlp = self.anatomy.site_module("mlp", layer)
                hooks.callback(_after(mlp, partial(values.__setitem__, Node("mlp", layer))))
            hooks.callback(_before(self.anatomy.after_blocks[0], final.append))
            logits = self.prepared.logits(keep_embedded, 1 + self.samples)
        self.added = {node: value[:1] - value[1:] for node, value in values.items()}
        return logits, final[0][:1] - final[0][1:]

    def _keep_heads(self, values: dict[Node, Tensor], layer: int, mixed: Tensor) -> None:
        each = mixed.unflatten(-1, (self.heads.n_heads, self.heads.d_head))
        for head, weight in enumerate(self.heads.writing(layer)):
            values[Node("head", layer, head)] = each[..., head, :] @ weight

    def slopes(self, steps: int) -> dict[Input, Tensor]:
        """Slope of the metric along each input, mean over the steps, [sample, token, d_model]."""
        total: dict[Input, Tensor] = {}
        for step in range(steps):
            for target, slope in self._slopes_at((step + 0.5) / steps).items():
                total[target] = total[target] + slope / steps if target in total else slope / steps
        return total

    def _slopes_at(self, share: float) -> dict[Input, Tensor]:
        """At corrupted embeddings moved this share of the way to the clean ones."""
        clean, corrupted = self._embedded[:1], self._embedded[1:]
        leaf = (corrupted + share * (clean - corrupted)).detach().clone().requires_grad_()
        read: dict[int, Tensor] = {}  # by each layer's attention
        slopes: dict[tuple[str, int], Tensor] = {}
        with ExitStack() as hooks:
            for layer in range(self.n_layers):
                hooks.callback(_before(self.heads.norm(layer, "attn"), partial(read.__setitem__, layer)))
                mlp_norm = self.heads.norm(layer, "mlp")
                hooks.callback(_watched_input(mlp_norm, partial(slopes.__setitem__, ("mlp", layer))))
                for role in PROJECTIONS:
                    module = self.heads.projection(layer, role)
                    hooks.callback(_watched_output(module, partial(slopes.__setitem__, (role, layer))))
            top = partial(slopes.__setitem__, ("logits", self.n_layers))
            hooks.callback(_watched_input(self.anatomy.after_blocks[0], top))
            logits = self.prepared.logits(lambda _: leaf, self.samples)
        torch.autograd.grad(self._metric(logits, self.answer).sum(), leaf)
        found: dict[Input, Tensor] = {}
        for layer in range(self.n_layers):
            found |= self._head_slopes(layer, read[layer].detach(), slopes)
            found[Input("mlp", layer)] = slopes["mlp", layer]
        found[Input("logits", self.n_layers)] = slopes["logits", self.n_layers]
        return found

    def _head_slopes(self, layer: int, read: Tensor, slopes: dict[tuple[str, int], Tensor]) -> dict[Input, Tensor]:
        """Of each head's queries, keys and values, back through their projection and the norm that they share."""
        leaf, found = read.clone().requires_grad_(), {}
        normed = self.heads.norm(layer, "attn")(leaf)
        for role in PROJECTIONS:
            for head in range(self.heads.count(role)):
                projected = slopes[role, layer][..., self.heads.columns(role, head)]
                back = projected @ self.heads.reading(layer, role, head)
                (found[Input(role, layer, head)],) = torch.autograd.grad(normed, leaf, back, retain_graph=True)
        return found

    def patched(self, edge: Edge) -> Tensor:
        """What restoring this edge alone adds to the corrupted run's metric, [sample]."""
        with torch.no_grad(), self._patching(edge.target, self.added[edge.source]):
            logits = self.prepared.logits(lambda _: self._embedded[1:], self.samples)
            return self._metric(logits, self.answer) - self.corrupted

    @contextmanager
    def _patching(self, target: Input, change: Tensor) -> Iterator[None]:
        """While the block runs, this input reads `change` on top of the residual stream."""
        with ExitStack() as hooks:
            if target.kind in ("logits", "mlp"):
                last = target.kind == "logits"
                norm = self.anatomy.after_blocks[0] if last else self.heads.norm(target.layer, "mlp")
                hooks.callback(_changed_input(norm, lambda hidden: hidden + change))
            else:
                self._patch_head(target, change, hooks)
            yield

    def _patch_head(self, target: Input, change: Tensor, hooks: ExitStack) -> None:
        assert target.kind in PROJECTIONS
        norm, columns = self.heads.norm(target.layer, "attn"), self.heads.columns(target.kind, target.head)
        projection = self.heads.projection(target.layer, target.kind)
        other: list[Tensor] = []

        def read(hidden: Tensor) -> None:
            if not other:  # not again when the hook itself calls the norm
                other.append(hidden + change)

        def write(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            if len(other) != 1:
                return None
            other.append(norm(other[0]))
            patched = output.clone()
            patched[..., columns] = projection(other[1])[..., columns]
            return patched

        hooks.callback(_before(norm, read))
        hooks.callback(projection.register_forward_hook(write).remove)


def _logit(logits: Tensor, token_id: int) -> Tensor:
    return logits[..., token_id]


def _before(module: nn.Module, keep: Callable[[Tensor], None]) -> Callable[[], None]:
    """Hands on what `module` is called with; returns what ends that."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(args[0] if args else kwargs["hidden_states"])

    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


def _after(module: nn.Module, keep: Callable[[Tensor], None]) -> Callable[[], None]:
    return module.register_forward_hook(lambda _module, _args, output: keep(hidden_of(output))).remove


def _changed_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    return module.register_forward_pre_hook(lambda _module, args: (change(args[0]), *args[1:])).remove


def _watched_input(module: nn.Module, keep: Callable[[Tensor], None]) -> Callable[[], None]:
    """Hands on the gradient at what `module` reads, along that way alone."""

    def watched(hidden: Tensor) -> Tensor:
        own = hidden.clone()
        own.register_hook(keep)
        return own

    return _changed_input(module, watched)


def _watched_output(module: nn.Module, keep: Callable[[Tensor], None]) -> Callable[[], None]:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        output.register_hook(keep)

    return module.register_forward_hook(hook).remove
