"""A first-order ranking of all MLP neurons, to choose those that are worth an exact trace.

A neuron's activation a is what its MLP's output matrix reads. One forward pass of the clean and the
corrupted rows and one backward pass give, for every neuron of every layer (Nanda 2023),
    IE(a) ~ (a_clean - a_corrupt) . d metric / d a
at the corrupted run where activations are restored, at the clean run where they are corrupted. Where
the metric is linear in the activations that is the effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tracer.anatomy.hidden import by_token
from tracer.corrupt import Corruption
from tracer.effect import Settings
from tracer.errors import AnatomyError, SiteError
from tracer.fact import Fact, TokenizedFact, token_roles
from tracer.first_order.prepared import Prepared, differentiable, prepare
from tracer.metric import metric_named
from tracer.model import LanguageModel
from tracer.model.tokens import visible
from tracer.plan import Plan
from tracer.precision import wide
from tracer.runs import other_id, traced_tokens
from tracer.site import Direction
from tracer.units import matrices_of


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """The estimated effect of each MLP neuron, set alone at one token.

    Attributes:
        answer_id, answer: the token traced.
        clean: the metric, nothing corrupted.
        corrupted_samples: the metric in each corrupted run, [sample].
        estimates: mean over the draws, signed as in `UnitTrace.unit_effect`, [token, layer, neuron]; NaN at tokens
            that were not asked for, and where a layer has fewer neurons than another.
    """

    fact: TokenizedFact
    answer_id: int
    answer: str
    clean: float
    corrupted_samples: np.ndarray
    estimates: np.ndarray
    settings: Settings

    def top(self, k: int = 20) -> list[tuple[int, int]]:
        """The k neurons (layer, number) whose estimate at any of the tokens is largest in size, largest first.

        Raises:
            SiteError: fewer than one.
        """
        if k < 1:
            raise SiteError(f"k={k} is no number of neurons. Write k=20.")
        traced = self.estimates[~np.isnan(self.estimates).all((1, 2))]
        sizes = np.nan_to_num(np.abs(traced).max(0), nan=-1.0)
        order = np.argsort(-sizes, axis=None, kind="stable")[: min(k, int((sizes >= 0).sum()))]
        return [(int(layer), int(neuron)) for layer, neuron in zip(*np.unravel_index(order, sizes.shape), strict=True)]

    def to_frame(self, k: int = 100) -> pd.DataFrame:
        """One row a token and neuron of `top(k)`: token, text, role, layer, neuron, estimate."""
        roles = token_roles(len(self.fact.token_ids), self.fact.subject_span)
        records = [
            {
                "token": int(token),
                "text": self.fact.tokens[token],
                "role": roles[token],
                "layer": layer,
                "neuron": neuron,
                "estimate": self.estimates[token, layer, neuron],
            }
            for layer, neuron in self.top(k)
            for token in np.flatnonzero(~np.isnan(self.estimates[:, layer, neuron]))
        ]
        return pd.DataFrame.from_records(records)


def attribute_neurons(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    *,
    roles: Sequence[str] | None = ("last subject token",),
    samples: int = 10,
    seed: int = 1,
    corruption: Corruption | str | None = None,
    metric: str = "probability",
    direction: Direction = "restore",
) -> NeuronScores:
    """Estimates what setting each MLP neuron alone would do, for all of them at the cost of about three passes.

    The largest are to be checked exactly, with the same options:

        scores = tracer.attribute_neurons(model, fact, metric="logit")
        exact = tracer.trace_neurons(model, fact, scores.top(20), metric="logit")

    Args:
        model: from `tracer.load`.
        fact: as in `tracer.trace`.
        roles: at which tokens; None: at all of them.
        samples: noise draws, those of `tracer.trace`.
        seed: of the draws.
        corruption: what corrupts the subject, or its name; default `GaussianNoise(3)`.
        metric: as in `tracer.trace`; all but "rank", which has no gradient, and "kl" where neurons are corrupted:
            to first order the clean run's distance from itself does not change.
        direction: "restore" (denoising) or "corrupt" (noising).

    Raises:
        AnatomyError: this family's MLPs have no single output matrix, or no gradient reaches it.
        FactError, SiteError: input that cannot be traced, before the model runs.
        NumericsError: NaN or infinite logits.

    Source: Nanda 2023, "Attribution patching".
    """
    _check_metric(metric, direction)
    model.check_decoder_only("attribute_neurons")
    model.check_whole("Neurons to attribute")
    matrices = matrices_of(model, "neuron")
    plan = Plan(roles=roles, samples=samples, seed=seed, corruption=corruption, metric=metric, direction=direction)
    prepared = prepare(model, fact, plan)
    tokens = traced_tokens(prepared.fact, plan.roles)
    other = other_id(prepared.fact) if metric == "logit_difference" else None
    with differentiable():
        logits, read = _activations(prepared, matrices)
        answer = prepared.answer_id(logits[0])
        measured = _measured(metric, logits, answer, other)
        # Rows do not mix: clean and corrupted rows each get their own gradient in one backward pass.
        slopes = torch.autograd.grad(measured.sum(), read, allow_unused=True)
    found = measured.detach().double().cpu().numpy()
    return NeuronScores(
        fact=prepared.fact,
        answer_id=answer,
        answer=visible(model.tokenizer, (answer,))[0],
        clean=float(found[0]),
        corrupted_samples=found[1:],
        estimates=_estimates(prepared, read, slopes, tokens),
        settings=prepared.settings("atp"),
    )


def _check_metric(metric: str, direction: str) -> None:
    if metric == "rank" or (metric == "kl" and direction == "corrupt"):
        raise SiteError(
            f'metric={metric!r} with direction={direction!r} has no slope to rank neurons by. Write metric="logit" or '
            f'metric="log_probability".'
        )


def _activations(prepared: Prepared, matrices: Sequence[nn.Module]) -> tuple[Tensor, list[Tensor]]:
    """Last-position logits [1 + sample, vocab], row 0 clean, and what each matrix read, both with gradients."""
    read: dict[int, Tensor] = {}

    def keep(layer: int, _matrix: nn.Module, args: tuple[Any, ...]) -> None:
        read[layer] = args[0]

    def leaf(embedded: Tensor) -> Tensor:  # so that there are gradients although no weight asks for any
        return prepared.corrupted(embedded).detach().requires_grad_()

    with ExitStack() as hooks:
        for layer, matrix in enumerate(matrices):
            hooks.callback(matrix.register_forward_pre_hook(partial(keep, layer)).remove)
        logits = prepared.logits(leaf, 1 + prepared.plan.samples)
    return logits, [read[layer] for layer in range(len(matrices))]


def _measured(metric: str, logits: Tensor, answer: int, other: int | None) -> Tensor:
    """The metric of each row, [1 + sample]."""
    answers = logits.new_full((len(logits),), answer, dtype=torch.long)
    others = None if other is None else torch.full_like(answers, other)
    clean = wide(logits[:1].detach()).expand(len(logits), -1)
    return metric_named(metric).of(wide(logits), answers, others, clean)


def _estimates(
    prepared: Prepared, read: Sequence[Tensor], slopes: Sequence[Tensor | None], tokens: Sequence[int]
) -> np.ndarray:
    """(clean - corrupted) . slope, mean over draws, [token, layer, neuron]; NaN at other tokens."""
    rows = 1 + prepared.plan.samples
    width = max(values.shape[-1] for values in read)
    found = np.full((len(prepared.fact.token_ids), len(read), width), np.nan)
    at = slice(0, 1) if prepared.plan.direction == "corrupt" else slice(1, None)
    for layer, (values, slope) in enumerate(zip(read, slopes, strict=True)):
        if slope is None:
            raise AnatomyError(
                f"No gradient of the answer reaches the neurons of layer {layer} in {prepared.model.name}. "
                f"Give neurons to tracer.trace_neurons, which needs none."
            )
        activations = wide(by_token(values.detach(), rows))
        estimate = (activations[:1] - activations[1:]) * wide(by_token(slope, rows))[at]
        found[tokens, layer, : values.shape[-1]] = estimate.mean(0)[list(tokens)].double().cpu().numpy()
    begin = prepared.fact.subject_span[0]
    found[:begin] = np.where(np.isnan(found[:begin]), np.nan, 0.0)  # nothing is corrupted there but by rounding
    return found
