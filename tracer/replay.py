"""Record one forward pass, then run the model's own blocks again on some of its tokens.

`record` keeps everything that a pass computes and the arguments each block was called with.
`Recording.run_block` calls a block again: other hidden states, chosen positions, keys and values
of the tokens before them taken from the recording. So nothing of an architecture is written
twice: rotary tables, norms, gates and caches stay the model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tracer.anatomy import SubLayer, hidden_of, with_hidden
from tracer.errors import AnatomyError
from tracer.model import LanguageModel

_CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")


@dataclass
class Recording:
    """What one forward pass of `model` computed. Tensors are [row, token, d_model], one a layer.

    Attributes:
        inputs, outputs: of each block.
        added: what each sub-layer added to the residual stream.
        keys, values: of each attention, [row, kv_head, token, head].
        arguments: what each block was called with, by name.
        visible: which tokens each token sees in each layer, bool [row or 1, token, token].
    """

    model: LanguageModel
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    added: dict[SubLayer, list[Tensor]] = field(default_factory=lambda: {"attn": [], "mlp": []})
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    arguments: list[dict[str, Any]] = field(default_factory=list)
    visible: list[Tensor] = field(default_factory=list)

    def run_block(
        self,
        layer: int,
        hidden: Tensor,
        *,
        positions: Tensor,
        mask: Tensor,
        keys: Tensor,
        values: Tensor,
        complete: bool = False,
    ) -> Tensor:
        """Block `layer` on `hidden` [row, query, d_model], with `keys` and `values` put before its own.

        Args:
            layer: which block.
            hidden: its input.
            positions: the token position of each query, [query] or [row, query].
            mask: added to the attention scores, [row or 1, 1, query, prefix + query].
            keys: of the prefix, [row, kv_head, prefix, head].
            values: likewise.
            complete: `keys` and `values` are all there are: the queries' own are among them.
        """
        cache = _Complete(keys, values) if complete else _Prefix(keys, values)
        return hidden_of(self._call(layer, hidden, positions, mask, cache))

    def keys_and_values(self, layer: int, hidden: Tensor, *, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What block `layer` would put into its cache, [row, kv_head, query, head]; nothing above that is run."""
        cache = _Catch()
        try:
            self._call(layer, hidden, positions, None, cache)
        except _Caught:
            return cache.caught
        raise AnatomyError(f"Block {layer} of {self.model.name} did not use its key/value cache.")

    def _call(self, layer: int, hidden: Tensor, positions: Tensor, mask: Tensor | None, cache: object) -> Any:
        arguments = dict(self.arguments[layer])
        for name, value in arguments.items():
            if name == "hidden_states":
                arguments[name] = hidden
            elif name in _CACHE_NAMES:
                arguments[name] = cache
            elif name == "attention_mask":
                arguments[name] = mask
            elif name == "position_ids" and value is not None:
                arguments[name] = _at(value, positions)
            elif name == "position_embeddings" and value is not None:
                arguments[name] = tuple(_at(table, positions) for table in value)
        return self.model.anatomy.blocks[layer](**arguments)


def record(
    model: LanguageModel,
    ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    embedded: Callable[[Tensor], Tensor] | None = None,
) -> Recording:
    """Runs `ids` [row, token] once and keeps everything; stops before the unembedding.

    Args:
        model: the model.
        ids: token ids, padded on the right if at all.
        attention_mask: 1 for tokens, 0 for padding, [row, token].
        embedded: changes the token embeddings [row, token, d_model], as a corruption does.
    """
    anatomy, kept = model.anatomy, Recording(model)
    cache = DynamicCache()
    with ExitStack() as hooks:
        if embedded is not None:
            hooks.enter_context(output_changed(anatomy.embedding, embedded))
        for layer, block in enumerate(anatomy.blocks):
            hooks.callback(block.register_forward_pre_hook(_keep_arguments(kept), with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(_keep_output(kept.outputs)).remove)
            for kind in ("attn", "mlp"):
                module = anatomy.site_module(kind, layer)
                hooks.callback(module.register_forward_hook(_keep_output(kept.added[kind])).remove)
        model.torch.base_model(input_ids=ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
    stored: list[Any] = cache.layers
    for layer in range(anatomy.n_layers):
        kept.keys.append(stored[layer].keys)
        kept.values.append(stored[layer].values)
        kept.visible.append(_visible(kept.arguments[layer].get("attention_mask"), ids.shape[1]).to(ids.device))
    return kept


@contextmanager
def output_changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While the block runs, `module` returns `change(hidden)` in place of its hidden states."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return with_hidden(output, change(hidden_of(output)))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `allowed`, the type's most negative number elsewhere; [..., query, key] -> [..., 1, query, key]."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min).unsqueeze(-3)


class _Prefix:
    """As much of a key/value cache as an attention layer calls: `update` puts a fixed prefix in front."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat((self.keys, keys), dim=-2), torch.cat((self.values, values), dim=-2)


@dataclass
class _Complete:
    """A cache that holds the queries' own keys and values already."""

    keys: Tensor
    values: Tensor

    def update(self, _keys: Tensor, _values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class _Caught(Exception):  # noqa: N818 - no error: it ends a block early
    pass


class _Catch:
    """A cache that ends the block once it has its keys and values."""

    caught: tuple[Tensor, Tensor]

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.caught = keys, values
        raise _Caught


def _keep_arguments(kept: Recording) -> Callable[..., None]:
    def hook(block: nn.Module, args: tuple, kwargs: dict) -> None:
        arguments = _by_name(type(block).forward, block, args, kwargs)
        if "hidden_states" not in arguments or not any(name in arguments for name in _CACHE_NAMES):
            raise AnatomyError(
                f"{type(block).__name__} was called with {', '.join(arguments)}: no hidden_states or no key/value "
                f'cache among them, so the sweep cannot run it again. Trace with engine="passes".'
            )
        kept.arguments.append(arguments)
        kept.inputs.append(arguments["hidden_states"])

    return hook


def _by_name(function: Callable, owner: nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a method call by name, without its owner, `**kwargs` spread out."""
    bound = inspect.signature(function).bind(owner, *args, **kwargs)
    spread = [p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    named = {name: value for name, value in list(bound.arguments.items())[1:] if name not in spread}
    for name in spread:
        named |= bound.arguments.get(name, {})
    return named


def _keep_output(store: list[Tensor]) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        store.append(hidden_of(output))

    return hook


def _visible(mask: Any, n_tokens: int) -> Tensor:
    """Which token sees which, from the mask the model itself made (None: every earlier token)."""
    causal = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril().unsqueeze(0)
    if mask is None:
        return causal
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise AnatomyError(
            'The attention mask is not a [batch, head, query, key] tensor. Load with attn_implementation="sdpa".'
        )
    seen = mask[:, 0, :, :n_tokens]
    return seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2


def _at(table: Tensor, positions: Tensor) -> Tensor:
    """The entries of a position table [1, token, ...] at `positions`, with a leading row axis."""
    picked = table[0][positions]
    return picked if positions.dim() == 2 else picked.unsqueeze(0)
