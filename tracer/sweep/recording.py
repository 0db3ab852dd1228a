"""Record one forward pass: everything that it computes, and the arguments each block was called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache

from tracer.anatomy.hidden import by_token, hidden_of
from tracer.errors import AnatomyError
from tracer.model import LanguageModel
from tracer.model.lock import lock_of
from tracer.model.prompt_ends import prompts_end_last
from tracer.sweep import masks
from tracer.sweep.hooks import only_here, output_changed
from tracer.sweep.replay import CACHE_NAMES, Recording


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
        # As where blocks run again, which no mask tells where prompts end.
        hooks.enter_context(prompts_end_last(model, len(ids), ids.shape[1]))
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


def _keep_arguments(kept: Recording) -> Callable[..., None]:
    def hook(block: nn.Module, args: tuple, kwargs: dict) -> None:
        """Keeps what the block is called with."""
        arguments = by_name(type(block).forward, block, args, kwargs)
        if "hidden_states" not in arguments or not any(name in arguments for name in CACHE_NAMES):
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
