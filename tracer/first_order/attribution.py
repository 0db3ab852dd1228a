"""First-order maps: what restoring each site would do, estimated for all sites at once.

One forward pass of the clean and the corrupted rows and one backward pass give, for every site z
(Nanda 2023, attribution patching, "AtP"):
    IE(z) ~ (z_clean - z_corrupt) . d p(answer) / d z      at the corrupted run
In a linear model that is the effect. A window of layers is the sum of its layers' estimates; it
counts what one layer of the window passes on through another, which restoring both together
overwrites, so windows wider than 1 are nearer to a ranking than to a value. Each draw has an
estimate of its own.

"graddrop" takes a backward pass for each layer and averages magnitudes (`tracer.first_order.graddrop`). No site here
is a query or a key, so for these maps that is all of AtP* (Kramar et al. 2024, arXiv:2403.00745); its
other half, the QK fix, is in `tracer.first_order.query_key`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tracer.anatomy.hidden import by_token, hidden_of, with_hidden
from tracer.answer import probability
from tracer.corrupt import Corruption
from tracer.effect import TraceResult
from tracer.errors import AnatomyError, SiteError
from tracer.fact import Fact, TokenizedFact
from tracer.first_order.graddrop import Drops
from tracer.first_order.prepared import Prepared, differentiable, prepare
from tracer.model import LanguageModel
from tracer.plan import Plan
from tracer.site import KINDS, Kind, window_layers

Method = Literal["atp", "graddrop"]
METHODS: tuple[Method, ...] = get_args(Method)


def attribute(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    *,
    kinds: Sequence[Kind] = KINDS,
    window: int = 10,
    samples: int = 10,
    seed: int = 1,
    corruption: Corruption | str | None = None,
    method: Method = "atp",
) -> TraceResult:
    """The map that `tracer.trace` would give, to first order, at the cost of about three forward passes.

    Args:
        model: from `tracer.load`.
        fact: as in `tracer.trace`.
        kinds: maps of states, MLP outputs and attention outputs.
        window: layers restored together around each MLP or attention; estimates of the layers are summed.
        samples: noise draws, those of `tracer.trace`.
        seed: of the draws.
        corruption: what corrupts the subject, or its name; default `GaussianNoise(3)`.
        method: "atp", or "graddrop" (a backward pass for each layer): magnitudes, never negative.

    Returns:
        A trace whose `settings.engine` is the method, so it never averages with an exact one. Its
        `restored` [token, layer, sample] is p_corrupted + the estimate and may leave [0, 1]; its
        `indirect_effect` is the estimate, a difference of probabilities, for "graddrop" the size of one.

    Raises:
        FactError, SiteError: input that cannot be traced, before the model runs.
        AnatomyError: a site that gradients do not reach; "graddrop" in a model of one layer.
        NumericsError: NaN or infinite logits.

    Source: Nanda 2023, "Attribution patching"; Kramar et al. 2024 for GradDrop.
    """
    if method == "atp*":
        raise SiteError(
            'For these sites AtP* is method="graddrop": none is a query or a key. For those, with the QK fix: '
            'tracer.attribute_queries_and_keys(model, fact, method="atp*").'
        )
    if method not in METHODS:
        raise SiteError(f"There is no method {method!r}. Choose from {', '.join(METHODS)}.")
    if method == "graddrop" and model.n_layers < 2:
        raise AnatomyError('GradDrop drops one layer of several; this model has one. Write method="atp".')
    plan = Plan(kinds=kinds, window=window, samples=samples, seed=seed, corruption=corruption)
    prepared = prepare(model, fact, plan)
    with differentiable():
        logits, maps = _Sites(prepared).maps(method)
    effects: dict[str, Tensor] = {kind: maps[kind] for kind in plan.kinds}
    return prepared.result(logits, effects, method)


class _Sites:
    """Every site of one pass as a tensor of its own, and (clean - corrupted) . gradient as gradients come by.

    Attributes:
        found: of the last backward pass, estimates [sample, token] by kind and layer.
        drops: the layer through whose sub-layers nothing flows back.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.model = prepared, prepared.model
        self.n_rows = 1 + prepared.plan.samples
        self.found: dict[tuple[Kind, int], Tensor] = {}
        self.drops = Drops()
        self._embedded: Tensor | None = None

    def maps(self, method: Method) -> tuple[Tensor, dict[Kind, Tensor]]:
        """Last-position logits [1 + sample, vocab] and estimates [token, layer, sample] of each kind."""
        logits = self._forward()
        answer = self.prepared.answer_id(logits[0])
        corrupted = probability(logits[1:], answer).sum()  # rows do not mix: each keeps its own gradient
        if method == "atp":
            estimates = self._backward(corrupted, last=True)
            return logits, {kind: self._windowed(kind, estimates[kind]) for kind in KINDS}
        sizes: dict[Kind, Tensor] = {kind: torch.zeros(()) for kind in KINDS}
        for layer in range(self.model.n_layers):
            self.drops.layer = layer
            estimates = self._backward(corrupted, last=layer == self.model.n_layers - 1)
            for kind in KINDS:
                sizes[kind] = sizes[kind] + self._windowed(kind, estimates[kind]).abs()
        return logits, {kind: size / self._drops(kind)[:, None] for kind, size in sizes.items()}

    def _forward(self) -> Tensor:
        anatomy = self.model.anatomy
        with ExitStack() as hooks:
            for layer, block in enumerate(anatomy.blocks):
                places: dict[Kind, nn.Module] = {
                    "state": block,
                    "attn": anatomy.site_module("attn", layer),
                    "mlp": anatomy.site_module("mlp", layer),
                }
                for kind, module in places.items():
                    hooks.callback(module.register_forward_hook(partial(self._watch, kind, layer)).remove)
            hooks.enter_context(self.drops.put_on(anatomy))
            return self.prepared.logits(self._leaf, self.n_rows)

    def _leaf(self, embedded: Tensor) -> Tensor:
        """The embeddings, where the backward pass ends."""
        self._embedded = self.prepared.corrupted(embedded).detach().requires_grad_()
        return self._embedded

    def _watch(self, kind: Kind, layer: int, _module: nn.Module, _args: Any, output: Any) -> Any:
        site = hidden_of(output).clone()
        values = by_token(site.detach(), self.n_rows)
        # Falcon goes on to add to it in place: the difference is taken, and the hook put on, before that.
        site.register_hook(partial(self._collect, kind, layer, values[:1] - values[1:]))
        return with_hidden(output, site)

    def _collect(self, kind: Kind, layer: int, difference: Tensor, gradient: Tensor) -> None:
        wide = torch.promote_types(difference.dtype, torch.float32)
        slope = by_token(gradient, self.n_rows)[1:]
        self.found[kind, layer] = (difference.to(wide) * slope.to(wide)).sum(-1)  # AtP

    def _backward(self, metric: Tensor, *, last: bool) -> dict[Kind, Tensor]:
        """Estimates of every site, [token, layer, sample]."""
        assert self._embedded is not None
        self.found = {}
        torch.autograd.grad(metric, self._embedded, retain_graph=not last, allow_unused=True)
        layers = range(self.model.n_layers)
        missing = [(kind, layer) for kind in KINDS for layer in layers if (kind, layer) not in self.found]
        if missing:
            kind, layer = missing[0]
            raise AnatomyError(
                f"No gradient of the answer reaches {kind!r} of layer {layer} in {self.model.name}, so this model has "
                f"no first-order map. Trace it with tracer.trace."
            )
        begin = self.prepared.fact.subject_span[0]
        stacked = {}
        for kind in KINDS:
            estimates = torch.stack([self.found[kind, layer].cpu() for layer in layers]).permute(2, 0, 1)
            estimates[:begin] = 0  # nothing is corrupted there but by rounding
            stacked[kind] = estimates
        return stacked

    def _windowed(self, kind: Kind, estimates: Tensor) -> Tensor:
        if kind == "state":
            return estimates
        return torch.stack([estimates[:, list(layers)].sum(1) for layers in self._windows()], dim=1)

    def _windows(self) -> list[range]:
        n_layers = self.model.n_layers
        return [window_layers(layer, self.prepared.plan.window, n_layers) for layer in range(n_layers)]

    def _drops(self, kind: Kind) -> Tensor:
        """How many drops leave a layer's site, or some of its window, in place: [layer]."""
        n_layers = self.model.n_layers
        if kind == "state":
            return torch.full((n_layers,), float(n_layers))
        return torch.tensor([float(n_layers - (len(layers) == 1)) for layers in self._windows()])
