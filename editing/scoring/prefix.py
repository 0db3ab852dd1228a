"""What many inputs begin with, read once: its keys and values serve them all.

A task prompt or an edit's demonstrations are hundreds of tokens before each query of ten. With causal
attention their keys and values do not depend on what follows: the same logits, to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tracer.model import LanguageModel

LEAST = 64  # common tokens that are worth a pass of their own

Ids = tuple[int, ...]


def begin_alike(rows: Iterable[Ids]) -> list[list[Ids]]:
    """The rows in groups that share their first `LEAST` tokens; those that share them with no other are one group."""
    groups: dict[Ids, list[Ids]] = {}
    for row in rows:
        groups.setdefault(row[:LEAST] if len(row) > LEAST else (), []).append(row)
    alone = [row for begin, group in groups.items() if len(group) == 1 or not begin for row in group]
    together = [group for begin, group in groups.items() if len(group) > 1 and begin]
    return [*together, alone] if alone else together


def common_length(rows: Sequence[Ids]) -> int:
    """How many tokens all rows begin with; 0 where reading them once would save nothing."""
    length = len(os.path.commonprefix(list(rows)))
    return length if len(rows) > 1 and length >= LEAST else 0


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens that a model has read.

    Attributes:
        length: how many.
        layers: keys and values of each layer, [1, head, token, d_head].
    """

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]

    def before(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """What the model must be given to read `ids` [row, token] after the prefix."""
        cache, n_rows = DynamicCache(), len(ids)
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(n_rows, -1, -1, -1), values.expand(n_rows, -1, -1, -1), number)
        seen = mask.new_ones(n_rows, self.length)
        whole = torch.cat((seen, mask), dim=1)
        return {"input_ids": ids, "attention_mask": whole, "past_key_values": cache, "use_cache": True}


def read_once(model: LanguageModel, ids: Ids) -> Prefix | None:
    """The tokens as read by the model; None where there are none or it keeps something else than keys and values."""
    if not ids:
        return None
    cache = DynamicCache()
    with torch.inference_mode():
        model.torch.base_model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache)
    layers = tuple((layer.keys, layer.values) for layer in cache.layers if isinstance(layer, DynamicLayer))
    kept = tuple((keys, values) for keys, values in layers if keys is not None and values is not None)
    return Prefix(len(ids), kept) if len(kept) == model.n_layers else None
