"""Edges: which head or MLP reaches the answer through which other one (EAP-IG, and path patching).

Nodes write to the residual stream: the embedding, each head, each MLP. Inputs read it: the queries,
keys and values of each head, each MLP, and the final norm before the logits. With grouped-query
attention keys and values are those of a key head. The score of the edge from node u to input v is
    (u_clean - u_corrupt) . 1/m sum over k of d metric / d v,  at  e_corrupt + a_k (e_clean - e_corrupt)
summed over tokens and averaged over draws, where e are the token embeddings, a_k = (k - 1/2) / m
(Hanna et al. 2024, arXiv:2403.17806; the midpoints of m steps where they take the ends) and the
gradient goes through v's own norm and nothing else before it.

Completeness: the embedding's edges sum to metric_clean - metric_corrupt as m grows, because every
input reads the embedding directly and integrated gradients along a straight line are complete.

Path patching is the exact counterpart: the corrupted run, with u's clean value in v's input alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tracer.answer import probability
from tracer.causal_trace import Plan
from tracer.corrupt import Corruption
from tracer.effect import Settings
from tracer.errors import AnatomyError, FileFormatError, SiteError
from tracer.fact import Fact, TokenizedFact
from tracer.heads import ROLES, Heads
from tracer.hidden import hidden_of
from tracer.model import LanguageModel
from tracer.prepared import Prepared, differentiable, prepare
from tracer.storage import read_tensors, write_tensors

Metric = Literal["probability", "logit"]


@dataclass(frozen=True)
class Node:
    """What writes to the residual stream: the embedding, a head, an MLP. -1 where there is no layer or head."""

    kind: Literal["embedding", "head", "mlp"]
    layer: int = -1
    head: int = -1

    @property
    def place(self) -> int:
        """Nodes with a lower place than an input's are seen by it."""
        return 2 * self.layer + (self.kind == "mlp")

    def __str__(self) -> str:
        if self.kind == "embedding":
            return "embedding"
        return f"head[{self.layer}.{self.head}]" if self.kind == "head" else f"mlp[{self.layer}]"


@dataclass(frozen=True)
class Input:
    """What reads the residual stream: queries, keys or values of a head, an MLP, the logits (above the last layer)."""

    kind: Literal["q", "k", "v", "mlp", "logits"]
    layer: int
    head: int = -1

    @property
    def place(self) -> int:
        """See `Node.place`."""
        return 2 * self.layer + (self.kind == "mlp")

    def __str__(self) -> str:
        if self.kind == "logits":
            return "logits"
        return f"mlp[{self.layer}]" if self.kind == "mlp" else f"{self.kind}[{self.layer}.{self.head}]"


@dataclass(frozen=True)
class Edge:
    """From what writes to what reads, directly."""

    source: Node
    target: Input

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """The edges of one fact.

    Attributes:
        sources, targets: in the order of `scores`' axes.
        scores: [source, target], differences of the metric, positive where restoring the edge brings the
            answer back; NaN where there is no edge.
        exact: the same by path patching, NaN where not computed.
        clean, corrupted: the metric in both runs, mean over draws.
        answer_id: the token that the metric is about.
        steps: of the integral.
    """

    sources: tuple[Node, ...]
    targets: tuple[Input, ...]
    scores: np.ndarray
    exact: np.ndarray
    clean: float
    corrupted: float
    answer_id: int
    metric: Metric
    steps: int
    settings: Settings

    def top(self, k: int = 10) -> list[tuple[Edge, float]]:
        """The k edges with the largest |score|, largest first, with their scores."""
        if k < 1:
            raise SiteError(f"k={k} is no number of edges. Write k=10.")
        sizes = np.where(np.isnan(self.scores), -1.0, np.abs(self.scores))
        order = np.argsort(-sizes, axis=None, kind="stable")[: min(k, int((sizes >= 0).sum()))]
        places = [np.unravel_index(at, sizes.shape) for at in order]
        return [(Edge(self.sources[s], self.targets[t]), float(self.scores[s, t])) for s, t in places]

    def to_frame(self) -> pd.DataFrame:
        """One row an edge: source and target with their kinds, layers and heads, score, exact."""
        records = [
            {
                "source": str(source),
                "target": str(target),
                **{f"source_{name}": value for name, value in dataclasses.asdict(source).items()},
                **{f"target_{name}": value for name, value in dataclasses.asdict(target).items()},
                "score": self.scores[s, t],
                "exact": self.exact[s, t],
            }
            for s, source in enumerate(self.sources)
            for t, target in enumerate(self.targets)
            if source.place < target.place
        ]
        return pd.DataFrame.from_records(records)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically."""
        about = {name: getattr(self, name) for name in ("clean", "corrupted", "answer_id", "metric", "steps")}
        about |= {
            "kind": "edges",
            "sources": [dataclasses.astuple(node) for node in self.sources],
            "targets": [dataclasses.astuple(node) for node in self.targets],
            "settings": dataclasses.asdict(self.settings),
        }
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in ("scores", "exact")}
        write_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> EdgeScores:
        """Reads what `save` wrote.

        Raises:
            FileFormatError: the file is missing, truncated or something else.
        """
        tensors, about = read_tensors(path, "edges")
        try:
            return cls(
                sources=tuple(Node(*node) for node in about["sources"]),
                targets=tuple(Input(*node) for node in about["targets"]),
                scores=tensors["scores"].numpy(),
                exact=tensors["exact"].numpy(),
                settings=Settings(**about["settings"]),
                **{name: about[name] for name in ("clean", "corrupted", "answer_id", "metric", "steps")},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} holds edges of another version: {error}. Make them again.") from error


def attribute_edges(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    *,
    steps: int = 5,
    exact: int = 0,
    metric: Metric = "probability",
    samples: int = 10,
    seed: int = 1,
    noise: Corruption | None = None,
) -> EdgeScores:
    """Scores every edge between heads and MLPs, from `steps` forward and backward passes.

    Args:
        model: of a family in `tracer.heads`: GPT-2 and those built like Llama.
        fact: as in `tracer.trace`, as are samples, seed and noise.
        steps: of the integral between corrupted and clean embeddings; 1 takes the gradient half way.
        exact: how many of the top edges to check by path patching, a pass each.
        metric: "probability" of the answer, or its "logit".
        samples: see `fact`.
        seed: see `fact`.
        noise: see `fact`.

    Raises:
        FactError, SiteError: input that cannot be traced, before the model runs.
        AnatomyError: heads of this family are not known, or its nodes do not add up to its residual stream.
        NumericsError: NaN or infinite logits.

    Source: Hanna et al. 2024 (EAP-IG); Wang et al. 2023, arXiv:2211.00593, for path patching.
    """
    if steps < 1 or exact < 0:
        raise SiteError(f"steps={steps}, exact={exact} cannot be. Write steps=5, exact=10.")
    if metric not in ("probability", "logit"):
        raise SiteError(f'There is no metric {metric!r}. Write metric="probability" or metric="logit".')
    heads = Heads(model)
    prepared = prepare(model, fact, Plan(window=1, samples=samples, seed=seed, noise=noise))
    runs = _Runs(prepared, heads, metric)
    with differentiable():
        slopes = runs.slopes(steps)
    sources, targets = list(runs.added), list(slopes)
    written = torch.stack([runs.added[node].flatten() for node in sources])
    scores = (written @ torch.stack([slopes[target].flatten() for target in targets]).T).double().cpu().numpy()
    scores /= samples
    scores[np.array([[node.place >= target.place for target in targets] for node in sources])] = np.nan
    found = EdgeScores(
        sources=tuple(sources),
        targets=tuple(targets),
        scores=scores,
        exact=np.full_like(scores, np.nan),
        clean=runs.clean,
        corrupted=float(runs.corrupted.double().mean()),
        answer_id=runs.answer,
        metric=metric,
        steps=steps,
        settings=prepared.settings("eap-ig"),
    )
    for edge, _ in found.top(exact) if exact else ():
        found.exact[sources.index(edge.source), targets.index(edge.target)] = float(runs.patched(edge).double().mean())
    return found


def path_patch(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    edges: Sequence[Edge],
    *,
    metric: Metric = "probability",
    samples: int = 10,
    seed: int = 1,
    noise: Corruption | None = None,
) -> np.ndarray:
    """What restoring each of these edges alone does to the metric, [edge, sample]; arguments as `attribute_edges`.

    The corrupted run, but the target reads the source's clean value at every token; all else that it reads,
    and all that others read of the source, stays corrupted. A positive effect brings the answer back.

    Raises:
        SiteError: an edge that this model does not have; otherwise as `attribute_edges`.
    """
    heads = Heads(model)
    for edge in edges:
        _check_edge(edge, heads)
    prepared = prepare(model, fact, Plan(window=1, samples=samples, seed=seed, noise=noise))
    runs = _Runs(prepared, heads, metric)
    return np.stack([runs.patched(edge).double().cpu().numpy() for edge in edges])


def _check_edge(edge: Edge, heads: Heads) -> None:
    n_layers, source, target = heads.anatomy.n_layers, edge.source, edge.target
    inside = {
        "embedding": source == Node("embedding"),
        "head": 0 <= source.layer < n_layers and 0 <= source.head < heads.n_heads,
        "mlp": 0 <= source.layer < n_layers and source.head == -1,
    }[source.kind]
    if target.kind in ROLES:
        seen = 0 <= target.layer < n_layers and 0 <= target.head < heads.count(target.kind)
    else:
        seen = target.head == -1 and (target.kind == "logits") == (target.layer == n_layers) and target.layer >= 0
    if not inside or not seen or target.layer > n_layers or source.place >= target.place:
        raise SiteError(
            f"There is no edge {edge}: the model has {n_layers} layers of {heads.n_heads} heads "
            f"({heads.n_key_heads} for keys and values), and a node reaches what comes after it. The logits are "
            f'Input("logits", {n_layers}).'
        )


class _Runs:
    """Clean and corrupted runs of a fact, and those in between and patched.

    Attributes:
        added: clean - corrupted of what each node writes, [sample, token, d_model].
        clean, corrupted: the metric, of the clean run, and of each corrupted one [sample].
        answer: the token that it is about.
    """

    def __init__(self, prepared: Prepared, heads: Heads, metric: Metric) -> None:
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
        """D metric / d each input, mean over the steps, [sample, token, d_model]."""
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
                for role in ROLES:
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
        for role in ROLES:
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
        assert target.kind in ROLES
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
