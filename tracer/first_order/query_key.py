"""Queries and keys to first order, through a softmax that is not (AtP*'s QK fix).

Where attention is saturated the softmax is flat, and the plain estimate (clean - corrupt) . gradient
of a query or key is near 0 whatever restoring it would do. The fix (Kramar et al. 2024,
arXiv:2403.00745) computes the attention weights A with the restored query or key exactly and takes
only what comes after them to first order:
    IE(query of token t)  ~  sum over s of (A_restored - A_corrupt)[t, s] . d p(answer) / d A[t, s]
    IE(key of token s)    ~  the same over all t, s, with the column of s restored in every row's scores

AtP* joins the fix with GradDrop (`tracer.first_order.graddrop`), whose estimates are sizes.

Reached in every family whose attention calls torch's scaled_dot_product_attention.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tracer.answer import probability
from tracer.corrupt import Corruption
from tracer.effect import Settings, fact_from
from tracer.errors import AnatomyError, SiteError
from tracer.fact import Fact, TokenizedFact
from tracer.first_order.attention_tap import Method, Tap
from tracer.first_order.graddrop import Drops
from tracer.first_order.prepared import Prepared, differentiable, prepare
from tracer.model import LanguageModel
from tracer.plan import Plan
from tracer.storage import of_this_version, read_tensors, write_tensors


@dataclass(frozen=True, eq=False)
class QueryKeyMaps:
    """First-order effects of restoring single heads' queries and keys.

    Attributes:
        effects: for "query" and "key" [token, layer, head, sample]; differences of probability. Heads are
            query heads: with grouped-query attention a key's effect is what it does through this head. For
            "atp*" sizes, never negative.
        answer_id: the token that the effects are on.
        clean: its probability, nothing corrupted.
        corrupted_samples: in each corrupted run, [sample].
    """

    fact: TokenizedFact
    answer_id: int
    clean: float
    corrupted_samples: np.ndarray
    effects: dict[str, np.ndarray]
    settings: Settings

    def to_frame(self) -> pd.DataFrame:
        """One row a kind, token, layer and head: indirect_effect, its mean over samples."""
        records = [
            {"kind": kind, "token": token, "layer": layer, "head": head, "indirect_effect": effect}
            for kind, values in self.effects.items()
            for (token, layer, head), effect in np.ndenumerate(values.mean(-1))
        ]
        return pd.DataFrame.from_records(records)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically."""
        arrays = {"corrupted_samples": self.corrupted_samples}
        arrays |= {f"effects/{kind}": np.ascontiguousarray(values) for kind, values in self.effects.items()}
        about = {
            "kind": "queries and keys",
            "fact": dataclasses.asdict(self.fact),
            "answer_id": self.answer_id,
            "clean": self.clean,
            "settings": dataclasses.asdict(self.settings),
        }
        write_tensors(path, {name: torch.from_numpy(values) for name, values in arrays.items()}, about)

    @classmethod
    def load(cls, path: str | Path) -> QueryKeyMaps:
        """Reads what `save` wrote.

        Raises:
            FileFormatError: the file is missing, truncated or something else.
        """
        tensors, about = read_tensors(path, "queries and keys")
        with of_this_version(path, "queries and keys"):
            return cls(
                fact=fact_from(about["fact"]),
                answer_id=about["answer_id"],
                clean=about["clean"],
                corrupted_samples=tensors["corrupted_samples"].numpy(),
                effects={kind: tensors[f"effects/{kind}"].numpy() for kind in ("query", "key")},
                settings=Settings(**about["settings"]),
            )


def attribute_queries_and_keys(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    *,
    method: Method = "qk-fix",
    samples: int = 10,
    seed: int = 1,
    corruption: Corruption | str | None = None,
) -> QueryKeyMaps:
    """Estimates what restoring each head's query or key at each token would do, after position rotation.

    Args:
        model: from `tracer.load`.
        fact: as in `tracer.trace`.
        method: "qk-fix" recomputes attention weights exactly; "atp*" does so in a backward pass for each layer
            and averages magnitudes; "atp" is plain attribution patching.
        samples: noise draws, those of `tracer.trace`.
        seed: of the draws.
        corruption: what corrupts the subject, or its name; default `GaussianNoise(3)`.

    Raises:
        FactError, SiteError: input that cannot be traced, before the model runs.
        AnatomyError: attention that does not go through scaled_dot_product_attention in every layer; "atp*" in
            a model of one layer.
        NumericsError: NaN or infinite logits.

    Source: Kramar et al. 2024 (QK fix, GradDrop).
    """
    if method not in get_args(Method):
        raise SiteError(f"There is no method {method!r}. Choose from {', '.join(get_args(Method))}.")
    if method == "atp*" and model.n_layers < 2:
        raise AnatomyError('AtP* drops one layer of several; this model has one. Write method="qk-fix".')
    model.check_whole("Queries and keys")
    prepared = prepare(model, fact, Plan(window=1, samples=samples, seed=seed, corruption=corruption))
    with differentiable():
        backward = _Backward(prepared)
        restored = backward.sizes() if method == "atp*" else backward.effects(method, None)
    # [layer, sample, head, token] -> [token, layer, head, sample]
    effects = {kind: values.permute(3, 0, 2, 1) for kind, values in restored.items()}
    found = probability(backward.logits.detach(), backward.answer).double().cpu().numpy()
    return QueryKeyMaps(
        fact=prepared.fact,
        answer_id=backward.answer,
        clean=float(found[0]),
        corrupted_samples=found[1:],
        effects={kind: values.double().cpu().numpy() for kind, values in effects.items()},
        settings=prepared.settings(f"{method}, queries and keys"),
    )


class _Backward:
    """One forward pass of a fact, and backward passes through it.

    Attributes:
        logits: of the last position, [1 + sample, vocab].
        answer: the token that effects are on.

    Raises:
        AnatomyError: a layer whose attention was not seen.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.model, self._drops = prepared.model, Drops()
        self._embedded = torch.empty(0)

        def leaf(embeddings: Tensor) -> Tensor:
            self._embedded = prepared.corrupted(embeddings).detach().requires_grad_()
            return self._embedded

        with Tap() as tap, self._drops.put_on(self.model.anatomy):
            self.logits = prepared.logits(leaf, 1 + prepared.plan.samples)
        self.answer, self._attentions = prepared.answer_id(self.logits[0]), tap.found
        if len(tap.found) != self.model.n_layers:
            raise AnatomyError(
                f"{len(tap.found)} of {self.model.n_layers} layers of model type {self.model.anatomy.family!r} attend "
                f"by torch's scaled_dot_product_attention, so their queries and keys cannot be reached. Load it with "
                f'attn_implementation="sdpa" if the family has that; tracer.attribute works with any attention.'
            )
        self._corrupted = probability(self.logits[1:], self.answer).sum()  # rows do not mix

    def effects(self, method: Method, dropped: int | None) -> dict[str, Tensor]:
        """First-order effects of every restored query and key, [layer, sample, head, token]."""
        self._drops.layer = dropped
        torch.autograd.grad(self._corrupted, self._embedded, retain_graph=True)
        with torch.no_grad():
            queries = torch.stack([each.queries(method) for each in self._attentions])
            return {"query": queries, "key": torch.stack([each.keys(method) for each in self._attentions])}

    def sizes(self) -> dict[str, Tensor]:
        """GradDrop over `effects`: a layer's own drop leaves nothing of its queries and keys, and is not counted."""
        found = [self.effects("qk-fix", layer) for layer in range(self.model.n_layers)]
        return {
            kind: torch.stack([each[kind].abs() for each in found]).sum(0) / (len(found) - 1)
            for kind in ("query", "key")
        }
