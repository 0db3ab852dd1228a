"""Record one forward pass, then run the model's own blocks again on some of its tokens.

`record` keeps everything that a pass computes and the arguments each block was called with.
`Recording.run_block` calls a block again: other hidden states, chosen positions, keys and values
of the tokens before them taken from the recording. So nothing of an architecture is written
twice: rotary tables, norms, gates and caches stay the model's own.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tracer.anatomy import SubLayer
from tracer.anatomy.hidden import by_token, hidden_of, with_hidden
from tracer.errors import AnatomyError
from tracer.model import LanguageModel
from tracer.model.lock import lock_of
from tracer.sweep import masks

_CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")
_BY_ROW = ("hidden_states", "position_ids", "position_embeddings", "alibi")
# Rows in the batch that runs: a sub-layer that flattens rows and tokens does not say. Each thread has its own.
_ROWS: ContextVar[int] = ContextVar("rows", default=1)


@dataclass
class Recording:
    """What one forward pass of `model` computed. Tensors are [row, token, d_model], one a layer.

    Attributes:
        inputs, outputs: of each block.
        added: what each sub-layer added to the residual stream.
        keys, values: of each attention, [row, kv_head, token, head].
        arguments: what each block was called with, by name.
        visible: which tokens each token sees in each layer, bool [row or 1, token, token].
        bias: what each layer's mask adds where it sees, [row or 1, head or 1, token, token]; None: nothing.
        blocks: each block, without a mask of its own.
        matrix_inputs: what came into each of the `matrices` that were asked for, [row, token, width].
    """

    model: LanguageModel
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    added: dict[SubLayer, list[Tensor]] = field(default_factory=lambda: {"attn": [], "mlp": []})
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    arguments: list[dict[str, Any]] = field(default_factory=list)
    visible: list[Tensor] = field(default_factory=list)
    bias: list[Tensor | None] = field(default_factory=list)
    blocks: list[nn.Module] = field(default_factory=list)
    matrix_inputs: list[Tensor] = field(default_factory=list)

    def attention_mask(self, layer: int, seen: Tensor, positions: Tensor, key_positions: Tensor) -> Tensor:
        """The mask for `run_block`: what the recorded one adds where `seen`, the most negative number elsewhere.

        Args:
            layer: which block.
            seen: bool [row or 1, query, key].
            positions: the token position of each query, [query] or [row, query].
            key_positions: of each key, those put before the block's own included, [key] or [row, key].
        """
        bias = self.bias[layer]
        bias = None if bias is None else masks.at(bias, positions, key_positions)
        return masks.additive(seen, bias, self.keys[layer].dtype)

    def of_rows(self, chosen: Tensor) -> Recording:
        """What was recorded of some rows, by number."""
        some = partial(_of_rows, len(self.inputs[0]), chosen)
        return Recording(
            self.model,
            some(self.inputs),
            some(self.outputs),
            {kind: some(added) for kind, added in self.added.items()},
            some(self.keys),
            some(self.values),
            [
                {name: some(value) if name in _BY_ROW else value for name, value in arguments.items()}
                for arguments in self.arguments
            ],
            some(self.visible),
            some(self.bias),
            self.blocks,
            some(self.matrix_inputs),
        )

    def run_block(
        self,
        layer: int,
        hidden: Tensor,
        *,
        positions: Tensor,
        key_positions: Tensor,
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
            key_positions: of each key, the prefix first, [prefix + query] or [row, prefix + query].
            mask: from `attention_mask`, [row or 1, head or 1, query, prefix + query].
            keys: of the prefix, [row, kv_head, prefix, head].
            values: likewise.
            complete: `keys` and `values` are all there are: the queries' own are among them.
        """
        cache = _Complete(keys, values) if complete else _Prefix(keys, values)
        return hidden_of(self._call(layer, hidden, positions, cache, mask, key_positions))

    def keys_and_values(self, layer: int, hidden: Tensor, *, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What block `layer` would put into its cache, [row, kv_head, query, head]; nothing above that is run."""
        cache = _Catch()
        try:
            self._call(layer, hidden, positions, cache)
        except _Caught:
            return cache.caught
        raise AnatomyError(f"Block {layer} of {self.model.name} did not use its key/value cache.")

    def _call(
        self,
        layer: int,
        hidden: Tensor,
        positions: Tensor,
        cache: object,
        mask: Tensor | None = None,
        key_positions: Tensor | None = None,
    ) -> Any:
        try:
            arguments = self._arguments(layer, hidden, positions, cache, mask, key_positions)
            _ROWS.set(len(hidden))
            return self.blocks[layer](**arguments)
        except AnatomyError:
            raise
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # it wants what it had in a whole pass
            raise AnatomyError(
                f"{type(self.blocks[layer]).__name__} of {self.model.name} cannot be run again on some of its tokens "
                f'({type(error).__name__}: {error}). Trace with engine="passes".'
            ) from error

    def _arguments(
        self,
        layer: int,
        hidden: Tensor,
        positions: Tensor,
        cache: object,
        mask: Tensor | None,
        key_positions: Tensor | None,
    ) -> dict[str, Any]:
        """What the block was called with, for these tokens."""
        arguments = dict(self.arguments[layer])
        for name, value in arguments.items():
            if name == "hidden_states":
                arguments[name] = hidden
            elif name in _CACHE_NAMES:
                arguments[name] = cache
            elif name == "attention_mask":
                arguments[name] = None if mask is None else mask.expand(len(hidden), -1, -1, -1)  # XGLM insists
            elif name == "position_ids" and value is not None:
                arguments[name] = _at(value, positions)
            elif name == "position_embeddings" and value is not None:
                arguments[name] = tuple(_at(table, positions) for table in value)
            elif name == "alibi" and value is not None and key_positions is not None:
                arguments[name] = masks.alibi_at(value, key_positions, len(self.inputs[layer]), len(hidden))
        return arguments


def record(
    model: LanguageModel,
    ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    embedded: Callable[[Tensor], Tensor] | None = None,
    matrices: Sequence[nn.Module] = (),
) -> Recording:
    """Runs `ids` [row, token] once and keeps everything; stops before the unembedding.

    Args:
        model: the model.
        ids: token ids, padded on the right if at all.
        attention_mask: 1 for tokens, 0 for padding, [row, token].
        embedded: changes the token embeddings [row, token, d_model], as a corruption does.
        matrices: keep what comes into these, one a layer.
    """
    model.check_decoder_only("Running blocks again on some of a text's tokens")
    anatomy, kept = model.anatomy, Recording(model)
    cache = DynamicCache()
    with lock_of(model.torch), ExitStack() as hooks:
        if embedded is not None:
            hooks.enter_context(output_changed(anatomy.embedding, embedded))
        for matrix in matrices:
            hooks.callback(
                matrix.register_forward_pre_hook(only_here(_keep_input(kept.matrix_inputs, len(ids)))).remove
            )
        for layer, block in enumerate(anatomy.blocks):
            hooks.callback(block.register_forward_pre_hook(only_here(_keep_arguments(kept)), with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(only_here(_keep_output(kept.outputs))).remove)
            for kind in ("attn", "mlp"):
                module = anatomy.site_module(kind, layer)
                hooks.callback(module.register_forward_hook(only_here(_keep_added(kept.added[kind], len(ids)))).remove)
        model.torch.base_model(input_ids=ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
    stored: list[Any] = cache.layers
    counts = (len(stored), len(kept.added["attn"]), len(kept.added["mlp"]))
    if counts != (anatomy.n_layers,) * 3:
        raise AnatomyError(
            f"Of {anatomy.n_layers} blocks {counts[0]} store keys and values, {counts[1]} call the attention site and "
            f'{counts[2]} their MLP site: not each once, so the sweep cannot run them again. Use engine="passes".'
        )
    for layer, block in enumerate(anatomy.blocks):
        kept.keys.append(stored[layer].keys)
        kept.values.append(stored[layer].values)
        seen, bias = masks.split(kept.arguments[layer].get("attention_mask"), ids.shape[1])
        own = masks.built_in(block, ids.shape[1])
        kept.visible.append((seen if own is None else seen.to(own.device) & own).to(ids.device))
        kept.bias.append(bias)
        kept.blocks.append(masks.without_built_in(block))
    return kept


@contextmanager
def output_changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While the block runs, `module` returns `change(hidden)` in place of its hidden states [row, token, width]."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        changed = change(by_token(hidden, _ROWS.get())).reshape(hidden.shape)
        return with_hidden(output, changed.contiguous())  # Falcon goes on to add to it in place

    handle = module.register_forward_hook(only_here(hook))
    try:
        yield
    finally:
        handle.remove()


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


def only_here(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, asleep in every other thread: modules are shared, what a thread puts on them is its own."""
    owner = threading.get_ident()

    def own(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if threading.get_ident() == owner else None

    return own


def _keep_arguments(kept: Recording) -> Callable[..., None]:
    def hook(block: nn.Module, args: tuple, kwargs: dict) -> None:
        arguments = by_name(type(block).forward, block, args, kwargs)
        if "hidden_states" not in arguments or not any(name in arguments for name in _CACHE_NAMES):
            raise AnatomyError(
                f"{type(block).__name__} was called with {', '.join(arguments)}: no hidden_states or no key/value "
                f'cache among them, so the sweep cannot run it again. Trace with engine="passes".'
            )
        kept.arguments.append(arguments)
        kept.inputs.append(arguments["hidden_states"])

    return hook


def by_name(function: Callable, owner: nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
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


def _keep_added(store: list[Tensor], rows: int) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        # A copy: Falcon adds the attention's output to the MLP's in place.
        store.append(by_token(hidden_of(output), rows).clone())

    return hook


def _keep_input(store: list[Tensor], rows: int) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple) -> None:
        store.append(by_token(args[0], rows).clone())

    return hook


def _of_rows(n_rows: int, chosen: Tensor, recorded: Any) -> Any:
    """The chosen rows of tensors that have one entry, or one a head (Bloom's alibi), for each recorded row."""
    if isinstance(recorded, list | tuple):
        return type(recorded)(_of_rows(n_rows, chosen, one) for one in recorded)
    if recorded is None or len(recorded) % n_rows:
        return recorded
    each = recorded.unflatten(0, (n_rows, -1))
    return each[chosen.to(each.device)].flatten(0, 1)


def _at(table: Tensor, positions: Tensor) -> Tensor:
    """The entries of a position table [row or 1, token, ...] at `positions`, with a leading row axis."""
    table = table.to(positions.device)
    if positions.dim() == 1:
        return table[:1, positions]
    each = torch.arange(len(positions), device=positions.device) if len(table) > 1 else positions.new_zeros(1)
    return table[each[:, None], positions]
