"""How much of an answer's probability each MLP neuron carries: integrated gradients along its activation.

With k the input of layer l's value matrix where the answer y is predicted, and w its value there,
    Attr_i = w_i * Int_0^1 dP(y | k := a w) / dk_i da        so that  sum_i Attr_i = P(w) - P(0)
(Dai et al. 2022, arXiv:2104.08696, eq. 4). Only one token changes, so only it is run, from block l up, all
points of the integral in one batch; the keys and values before it come from one recorded pass.

A norm right after W (Gemma 2 and 3, OLMo 2) is held at its clean scale, so that it is linear: it would
undo the scaling of k, and all of the integral would lie too near to 0 for any number of points. The
ends of the path, and with them the sum, stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from editing.locate_then_edit.norms import has_norm
from editing.scoring.forced_decoder import ForcedDecoder
from tracer.first_order.prepared import differentiable
from tracer.model import LanguageModel
from tracer.precision import wide
from tracer.sweep.hooks import only_here
from tracer.sweep.recording import record
from tracer.sweep.replay import Recording
from tracer.sweep.upper_blocks import upper_blocks
from tracer.units import input_width

Rule = Literal["gauss-legendre", "left"]


def quadrature(nodes: int, rule: Rule) -> tuple[Tensor, Tensor]:
    """Points in [0, 1] and their weights, float64: Gauss-Legendre, or the left sum a = i / nodes as published."""
    if rule == "left":
        return torch.arange(nodes, dtype=torch.float64) / nodes, torch.full((nodes,), 1 / nodes, dtype=torch.float64)
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)


def attributions(
    model: LanguageModel,
    ids: Sequence[int],
    n_prompt: int,
    n_encoder: int = 0,
    *,
    nodes: int = 20,
    rule: Rule = "gauss-legendre",
    each_layer: Callable[[], object] = lambda: None,
) -> list[Tensor]:
    """Attr of every neuron, a [d_mlp] for each layer: a difference of probabilities, positive where it helps.

    An encoder predicts no token, so the neurons of its layers have 0.

    Args:
        model: the model.
        ids: prompt and answer. Of an answer of several tokens each is predicted from those before it,
            and the attributions are averaged.
        n_prompt: how many of them are the prompt.
        n_encoder: how many of them an encoder reads; 0: there is none.
        nodes: points of the integral.
        rule: where they lie.
        each_layer: called after each layer of each answer token.
    """
    points, weights = (half.to(model.device) for half in quadrature(nodes, rule))
    matrices = [model.anatomy.value_matrix(layer) for layer in range(model.n_layers)]
    answer = range(n_prompt, len(ids))
    found = []
    with differentiable():
        if n_encoder:
            integrated = partial(_in_decoder, model, tuple(ids), n_encoder, points, weights)
        else:
            with torch.no_grad():
                run = record(model, torch.tensor([ids[:-1]], device=model.device), matrices=matrices)
            integrated = partial(_integrated, run, tuple(ids), points, weights)
        for layer in range(model.n_layers):
            parts = []
            for at in answer:
                parts.append(integrated(layer, at))
                each_layer()
            found.append(torch.stack(parts).mean(0))
    return found


def _integrated(run: Recording, ids: tuple[int, ...], points: Tensor, weights: Tensor, layer: int, at: int) -> Tensor:
    """Attr [d_mlp] of one layer's neurons where the token ids[at] is predicted."""
    place = at - 1
    key = run.matrix_inputs[layer][0, place]
    scaled = (points.to(key)[:, None] * key).requires_grad_()
    above = upper_blocks(run, layer, first=place, stop=place + 1, copies=len(points))
    with _norm_held(run, layer, place, key), _input_replaced(run.model.anatomy.value_matrix(layer), scaled):
        logits = run.model.anatomy.unembed(above.outputs()[:, 0])
    return key * _slope(run.model, logits, ids[at], weights, scaled)


def _in_decoder(
    model: LanguageModel, ids: tuple[int, ...], n_encoder: int, points: Tensor, weights: Tensor, layer: int, at: int
) -> Tensor:
    """The same in an encoder-decoder, whose decoder is run whole on the tokens up to this one."""
    matrix, found = model.anatomy.value_matrix(layer), []
    width = input_width(matrix)
    if layer < model.anatomy.n_encoder_layers:
        return torch.zeros(width, dtype=model.dtype, device=model.device)
    forced = ForcedDecoder.of(model, [ids[:at]], [n_encoder]).with_encoded()
    handle = matrix.register_forward_pre_hook(only_here(lambda _matrix, inputs: found.append(inputs[0][:, -1:])))
    try:
        with torch.no_grad():
            forced.logits()
    finally:
        handle.remove()
    key = found[0][0, 0]
    scaled = (points.to(key)[:, None] * key).requires_grad_()
    with _last_input_replaced(matrix, scaled):
        logits = forced.copies(len(points)).logits()[:, -1]
    return key * _slope(model, logits, ids[at], weights, scaled)


def _slope(model: LanguageModel, logits: Tensor, token: int, weights: Tensor, scaled: Tensor) -> Tensor:
    """The integral of dP(token) / dk, [d_mlp], from logits [point, vocab] that depend on `scaled` [point, d_mlp]."""
    model.check_finite(logits)
    logits = wide(logits)
    probability = logits.log_softmax(-1)[:, token].exp()
    (gradient,) = torch.autograd.grad((weights.to(probability) * probability).sum(), scaled)
    return gradient.sum(0)


@contextmanager
def _input_replaced(matrix: nn.Module, value: Tensor) -> Iterator[None]:
    """While the block runs, `value` [row, d_mlp] comes into `matrix`."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (value.reshape(inputs[0].shape), *inputs[1:])

    handle = matrix.register_forward_pre_hook(only_here(hook))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _last_input_replaced(matrix: nn.Module, value: Tensor) -> Iterator[None]:
    """While the block runs, `value` [row, d_mlp] comes into `matrix` at the last token of each row."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.cat((inputs[0][:, :-1], value[:, None].to(inputs[0])), dim=1), *inputs[1:])

    handle = matrix.register_forward_pre_hook(only_here(hook))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _norm_held(run: Recording, layer: int, place: int, key: Tensor) -> Iterator[None]:
    """While the block runs, a norm between W and the residual stream only multiplies, by what it did at `place`."""
    matrix, site = run.model.anatomy.value_matrix(layer), run.model.anatomy.site_module("mlp", layer)
    if not has_norm(run.model):
        yield
        return
    with torch.no_grad():
        before, after = matrix(key[None])[0], run.added["mlp"][layer][0, place]
        factor = torch.where(before == 0, torch.zeros_like(after), after / before)
    handle = site.register_forward_hook(only_here(lambda _module, inputs, _output: inputs[0] * factor))
    try:
        yield
    finally:
        handle.remove()
