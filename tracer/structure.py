"""Find a model's parts by what its modules do, for types that `tracer.anatomy` does not list.

One pass over a few token ids, every module watched. A block's sites are the outermost two
submodules A and M with
    output = input + A + M
in every block, A being the one that belongs to the attention: the part that stores keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tracer.anatomy import Names
from tracer.errors import AnatomyError
from tracer.watch import N_TOKENS, Watched, watch


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
    each = [] if blocks is None else [_Block(model, watched, f"{blocks}.{n}") for n in range(_length(model, blocks))]
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


class _Block:
    """One block: its modules by their path inside it.

    Attributes:
        attention: the module that stores keys and values; None if none does.
    """

    def __init__(self, model: PreTrainedModel, watched: Watched, path: str) -> None:
        self.path, self.watched, self.module = path, watched, model.get_submodule(path)
        inside = [path for path in sorted(watched.caches) if path.startswith(f"{self.path}.")]
        self.attention = inside[0].removeprefix(f"{self.path}.") if inside else None

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Pairs (attention site, MLP site): their outputs add up to what the block adds to its input."""
        watched, before = self.watched, self.watched.inputs[self.path]
        after = watched.outputs[self.path]
        names = [
            name
            for name, module in self.module.named_modules()
            if watched.once(self.full(name)) and not isinstance(module, nn.Dropout | nn.Identity)
        ]
        added = {name: watched.outputs[self.full(name)] for name in names if name}
        added = {name: one for name, one in added.items() if one.shape == before.shape and one.any()}
        for one, other in combinations(added, 2):
            parts = (before, added[one], added[other])
            rounding = 8 * torch.finfo(after.dtype).eps * sum(part.abs() for part in (*parts, after))
            if bool(((after - sum(parts)).abs() <= rounding).all()):
                yield (one, other) if self._is_attention(one, other) else (other, one)

    def _is_attention(self, one: str, other: str) -> bool:
        """Whether `one`, rather than `other`, is what the attention adds."""
        first, second = self.in_attention(one), self.in_attention(other)
        if first != second:
            return first
        return self.watched.ended[self.full(one)] < self.watched.ended[self.full(other)]

    def in_attention(self, name: str) -> bool:
        """Whether the module stands in the same part of the block as the one that stores keys and values."""
        return name.split(".")[0] == str(self.attention).split(".")[0]

    def value_matrix(self, mlp_site: str) -> str | None:
        """The matrix whose output is the MLP site's, or goes into the norm that is the site; None if none is."""
        site = self.full(mlp_site)
        wanted = [store[site] for store in (self.watched.outputs, self.watched.inputs) if site in store]
        found = [
            name
            for name, module in self.module.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
            and self.watched.once(self.full(name))
            and not self.in_attention(name)
            and any(torch.equal(self.watched.outputs[self.full(name)], one) for one in wanted)
        ]
        return found[-1] if found else None

    def full(self, name: str) -> str:
        """The path from the model of a module inside this block."""
        return f"{self.path}.{name}" if name else self.path


def _common_pair(blocks: list[_Block]) -> tuple[str, str] | None:
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
