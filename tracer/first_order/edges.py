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

from collections.abc import Sequence

import numpy as np
import torch

from tracer.corrupt import Corruption
from tracer.errors import SiteError
from tracer.fact import Fact, TokenizedFact
from tracer.first_order.edge_runs import EdgeRuns
from tracer.first_order.edge_scores import Edge, EdgeMetric, EdgeScores, Node, check_metric
from tracer.first_order.heads import PROJECTIONS, Heads
from tracer.first_order.prepared import differentiable, prepare
from tracer.model import LanguageModel
from tracer.plan import Plan


def attribute_edges(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    *,
    steps: int = 5,
    exact: int = 0,
    metric: EdgeMetric = "probability",
    samples: int = 10,
    seed: int = 1,
    corruption: Corruption | str | None = None,
) -> EdgeScores:
    """Scores every edge between heads and MLPs, from `steps` forward and backward passes.

    Args:
        model: of a family in `tracer.first_order.heads`: GPT-2 and those built like Llama.
        fact: as in `tracer.trace`.
        steps: of the integral between corrupted and clean embeddings; 1 takes the gradient half way.
        exact: how many of the top edges to check by path patching, a pass each.
        metric: "probability" of the answer, or its "logit".
        samples: noise draws, those of `tracer.trace`.
        seed: of the draws.
        corruption: what corrupts the subject, or its name; default `GaussianNoise(3)`.

    Raises:
        FactError, SiteError: input that cannot be traced, before the model runs.
        AnatomyError: heads of this family are not known, or its nodes do not add up to its residual stream.
        NumericsError: NaN or infinite logits.

    Source: Hanna et al. 2024 (EAP-IG); Wang et al. 2023, arXiv:2211.00593, for path patching.
    """
    if steps < 1 or exact < 0:
        raise SiteError(f"steps={steps} must be 1 or more, exact={exact} 0 or more. Write steps=5, exact=10.")
    check_metric(metric)
    heads = Heads(model)
    prepared = prepare(model, fact, Plan(window=1, samples=samples, seed=seed, corruption=corruption))
    runs = EdgeRuns(prepared, heads, metric)
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
        prompt=prepared.fact.text,
    )
    for edge, _ in found.top(exact) if exact else ():
        found.exact[sources.index(edge.source), targets.index(edge.target)] = float(runs.patched(edge).double().mean())
    return found


def path_patch(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    edges: Sequence[Edge],
    *,
    metric: EdgeMetric = "probability",
    samples: int = 10,
    seed: int = 1,
    corruption: Corruption | str | None = None,
) -> np.ndarray:
    """What restoring each of these edges alone does to the metric, [edge, sample]; arguments as `attribute_edges`.

    The corrupted run, but the target reads the source's clean value at every token; all else that it reads,
    and all that others read of the source, stays corrupted. A positive effect brings the answer back.

    Raises:
        SiteError: no edge, or one that this model does not have; otherwise as `attribute_edges`.
    """
    check_metric(metric)
    if not edges:
        raise SiteError("No edges to patch: give [Edge(...), ...], or [edge for edge, _ in scores.top(5)].")
    heads = Heads(model)
    for edge in edges:
        if not isinstance(edge, Edge):
            raise SiteError(f"{edge!r} is not an edge. Of scores write [edge for edge, _ in scores.top(5)].")
        _check_edge(edge, heads)
    prepared = prepare(model, fact, Plan(window=1, samples=samples, seed=seed, corruption=corruption))
    runs = EdgeRuns(prepared, heads, metric)
    return np.stack([runs.patched(edge).double().cpu().numpy() for edge in edges])


def _check_edge(edge: Edge, heads: Heads) -> None:
    n_layers, source, target = heads.anatomy.n_layers, edge.source, edge.target
    inside = {
        "embedding": source == Node("embedding"),
        "head": 0 <= source.layer < n_layers and 0 <= source.head < heads.n_heads,
        "mlp": 0 <= source.layer < n_layers and source.head == -1,
    }.get(source.kind, False)
    if target.kind in PROJECTIONS:
        seen = 0 <= target.layer < n_layers and 0 <= target.head < heads.count(target.kind)
    else:
        seen = target.head == -1 and (target.kind == "logits") == (target.layer == n_layers) and target.layer >= 0
    if not inside or not seen or target.layer > n_layers or source.place >= target.place:
        raise SiteError(
            f"There is no edge {edge}: the model has {n_layers} layers of {heads.n_heads} heads "
            f"({heads.n_key_heads} for keys and values), and a node reaches what comes after it. The logits are "
            f'Input("logits", {n_layers}).'
        )
