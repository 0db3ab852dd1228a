"""Find a model's parts by what its modules do, for types that `tracer.anatomy` does not list.

One pass over a few token ids, every module watched. A block's sites are the outermost two
submodules A and M with
    output = input + A + M
in every block, A being the one that belongs to the attention: the part that stores keys and values.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from tracer.anatomy.block import Block
from tracer.anatomy.names import Names
from tracer.anatomy.watch import N_TOKENS, Watched, watch
from tracer.errors import AnatomyError


def names_by_structure(model: PreTrainedModel) -> Names:
    """The names of every role, the same in all blocks.

    Args:
        model: in eval mode: with dropout nothing adds up.

    Raises:
        AnatomyError: lists each role that was not found, and why.
    """
    missing: dict[str, str] = {}
    watched = _watched(model, missing)
    embedding, head = _path_of(model, model.get_input_embeddings()), _path_of(model, model.get_output_embeddings())
    if embedding is None:
        missing["embedding"] = "get_input_embeddings() is no module of this model"
    if head is None:
        missing["head"] = "get_output_embeddings() is no module of this model"
    blocks = _blocks(model, watched)
    each = [] if blocks is None else [Block(model, watched, f"{blocks}.{n}") for n in range(_length(model, blocks))]
    if not each:
        missing["blocks"] = "no list of modules hands one hidden state from each to the next"
    without = [block for block in each if block.attention is None]
    if without:
        kind, count = type(without[0].module).__name__, f"{len(without)} of {len(each)} blocks"
        missing.setdefault("attention", f"{count} store no keys and values, first {without[0].path} ({kind})")
    pair = _common_pair(each) if each and not without else None
    if pair is None:
        missing["attention site, MLP site"] = (
            "no two submodules add up to what each block adds to its input (a norm or a factor after the sum?)"
            if each and not without
            else "they are looked for in blocks with attention"
        )
    if missing or pair is None or blocks is None or embedding is None or head is None:
        raise AnatomyError(
            f"Model type {model.config.model_type!r} is not listed, and not every part of it was found. Missing: "
            + "; ".join(f"{role}: {reason}" for role, reason in missing.items())
            + ". If it is a transformer decoder, name its parts: tracer.load(..., names=tracer.Names(embedding=..., "
            "blocks=..., after_blocks=(...), mlp=..., attention_site=..., mlp_site=..., value_matrix=...))."
        )
    attention_site, mlp_site = pair
    matrices = {block.value_matrix(mlp_site) for block in each}
    value_matrix = matrices.pop() if len(matrices) == 1 else None
    return Names(
        embedding=embedding,
        blocks=blocks,
        after_blocks=_between(watched, f"{blocks}.{len(each) - 1}", head),
        mlp=mlp_site if value_matrix is None else (value_matrix.rpartition(".")[0] or value_matrix),
        attention_site=attention_site,
        mlp_site=mlp_site,
        value_matrix=value_matrix,
    )


def _watched(model: PreTrainedModel, missing: dict[str, str]) -> Watched:
    """Watches one pass; a model that does not run with a plain cache gets that noted, and runs without."""
    try:
        return watch(model, cache=True)
    except Exception as error:  # whatever an unknown model does with such a cache
        missing["attention"] = (
            f"it does not run with keys and values alone ({type(error).__name__}: {error}); "
            f"blocks with another state (Mamba, linear attention) cannot be run again in parts"
        )
    try:
        return watch(model, cache=False)
    except Exception as error:
        raise AnatomyError(
            f"Model type {model.config.model_type!r} is not listed, and the search for its parts failed: "
            f"it does not run on {N_TOKENS} tokens ({type(error).__name__}: {error})."
        ) from error


def _path_of(model: PreTrainedModel, wanted: nn.Module | None) -> str | None:
    return next((path for path, module in model.named_modules() if module is wanted), None)


def _blocks(model: PreTrainedModel, watched: Watched) -> str | None:
    """The longest list of modules of which each takes what the one before it gave."""
    found = []
    for path, module in model.named_modules():
        each = [f"{path}.{n}" for n in range(len(module))] if isinstance(module, nn.ModuleList) else []
        if each and all(watched.once(one) and one in watched.inputs for one in each):
            pairs = zip(each, each[1:], strict=False)
            if all(torch.equal(watched.outputs[one], watched.inputs[other]) for one, other in pairs):
                found.append(path)
    return max(found, key=lambda path: _length(model, path), default=None)


def _length(model: PreTrainedModel, blocks: str) -> int:
    return len(list(model.get_submodule(blocks).children()))


def _common_pair(blocks: list[Block]) -> tuple[str, str] | None:
    """The outermost pair of sites that all blocks have."""
    common = set.intersection(*(set(block.pairs()) for block in blocks))
    return min(common, key=lambda pair: (sum(name.count(".") for name in pair), pair), default=None)


def _between(watched: Watched, last_block: str, head: str) -> tuple[str, ...]:
    """The outermost modules that began after the last block had ended, and ended before the head began."""
    inside = [
        path
        for path, began in watched.began.items()
        if began > watched.ended[last_block] and watched.ended.get(path, watched.clock) < watched.began[head]
    ]
    return tuple(path for path in inside if not any(path.startswith(f"{other}.") for other in inside))
