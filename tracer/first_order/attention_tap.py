"""Attention seen step by step: queries, keys and weights of every layer, and the slopes of the answer along them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

Method = Literal["atp", "qk-fix", "atp*"]


@dataclass(eq=False)
class Attention:
    """One layer's attention in clean (row 0) and corrupted rows, and the gradients at the corrupted ones.

    Attributes:
        query, key: [row, head, token, d_head].
        allowed: added to the scores: 0 or a bias, -inf where not seen; [row or 1, head or 1, token, token].
        slopes: d p / d query, key and weights, by name, all rows.
    """

    query: Tensor
    key: Tensor
    allowed: Tensor
    scale: float
    slopes: dict[str, Tensor]

    def queries(self, method: Method) -> Tensor:
        """Effect of each restored query, [sample, head, token]."""
        if method == "atp":
            return ((self.query[:1] - self.query[1:]) * self.slopes["query"][1:]).sum(-1)
        restored = self._scores(self.query[:1], self.key[1:]).softmax(-1)
        return ((restored - self._corrupted().softmax(-1)) * self.slopes["weights"][1:]).sum(-1)

    def keys(self, method: Method) -> Tensor:
        """Effect of each restored key, [sample, head, token]."""
        if method == "atp":
            return ((self.key[:1] - self.key[1:]) * self.slopes["key"][1:]).sum(-1)
        corrupted, with_clean = self._corrupted(), self._scores(self.query[1:], self.key[:1])
        before, effects = corrupted.softmax(-1), []
        for token in range(corrupted.shape[-1]):
            scores = corrupted.clone()
            scores[..., token] = with_clean[..., token]  # this key alone is clean
            effects.append(((scores.softmax(-1) - before) * self.slopes["weights"][1:]).sum((-2, -1)))
        return torch.stack(effects, dim=-1)

    def _corrupted(self) -> Tensor:
        return self._scores(self.query[1:], self.key[1:])

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        allowed = self.allowed if len(self.allowed) == 1 else self.allowed[1:]
        return self.scale * query @ key.transpose(-1, -2) + allowed


class Tap(TorchFunctionMode):
    """While it is active, scaled_dot_product_attention is computed step by step, so that gradients reach each step."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Attention] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
        wide = torch.promote_types(query.dtype, torch.float32)
        query, key = query.to(wide).clone(), key.to(wide).clone()
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        attention = Attention(query, key, _allowed(attn_mask, is_causal, query), factor, {})
        weights = (factor * query @ key.transpose(-1, -2) + attention.allowed).softmax(-1)
        for name, tensor in (("query", query), ("key", key), ("weights", weights)):
            tensor.register_hook(partial(attention.slopes.__setitem__, name))
        self.found.append(attention)
        return weights.to(value.dtype) @ value


def _allowed(mask: Tensor | None, is_causal: bool, query: Tensor) -> Tensor:
    """What is added to the scores, in their type, [row or 1, head or 1, token, token]."""
    n_tokens = query.shape[-2]
    if mask is None:
        mask = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=query.device)
        mask = mask.tril() if is_causal else mask
    mask = mask[(None,) * (4 - mask.dim())]
    if mask.dtype != torch.bool:
        return mask.to(query.dtype)
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
