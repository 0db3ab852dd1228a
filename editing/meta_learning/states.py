"""What enters a block when texts are read: all that edits of it and of the blocks above leave as it is.

Texts of like length are read together, so that little is padded, and the pass stops where the block begins.
The blocks above are run again on any such states: how a block is called is recorded once, on one text, and
holds for every text that is not longer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from editing.early_end import PassEnded, ending_early
from tracer.model import LanguageModel
from tracer.model.tokens import right_padded
from tracer.sweep.hooks import only_here
from tracer.sweep.recording import record
from tracer.sweep.replay import Recording
from tracer.sweep.upper_blocks import UpperBlocks, upper_blocks

TOKENS = 192  # padded tokens in one pass: more would be padded, fewer would leave matrix products small
# What a block is called with that `Recording.run_block` makes anew for other tokens.
BY_POSITION = ("hidden_states", "attention_mask", "position_ids", "position_embeddings", "alibi", "cache_position")

Ids = tuple[int, ...]
Read = Callable[[Iterable[Ids]], Mapping[Ids, Tensor]]


@torch.no_grad()
def states_entering(model: LanguageModel, layer: int, rows: Iterable[Ids]) -> dict[Ids, Tensor]:
    """What enters block `layer` for each row of ids, [token, d_model] each; with weights and hooks as they are."""
    found = {}
    for batch in _batches(sorted(set(rows), key=lambda ids: (len(ids), ids))):
        read, mask = right_padded(batch, device=model.device)
        hidden = _entering(model, model.anatomy.blocks[layer], read, mask)
        found |= {ids: of_row[: len(ids)] for ids, of_row in zip(batch, hidden, strict=True)}
    return found


def blocks_on(model: LanguageModel, layer: int, rows: Sequence[Ids], states: Mapping[Ids, Tensor]) -> UpperBlocks:
    """The blocks from `layer` up, on rows of ids whose states enter it."""
    longest = max(map(len, rows))
    called = _called(model, longest)
    if not _of_any_text(called):
        ids, mask = right_padded(rows, device=model.device)
        with torch.no_grad():
            run = record(model, ids, attention_mask=mask)
        return upper_blocks(run, layer, first=0, stop=longest, lengths=mask.sum(1))
    above = upper_blocks(called, layer, first=0, stop=longest, copies=len(rows))
    # Zeros where a row is padded, behind all that counts: with causal attention no token of the row sees them.
    return dataclasses.replace(above, hidden=pad_sequence([states[ids] for ids in rows], batch_first=True))


def _called(model: LanguageModel, n_tokens: int) -> Recording:
    """A recording of one text that is long enough; the model remembers it."""
    key = ("how blocks are called", str(model.device), model.dtype)
    known: Recording | None = model.remembered.get(key)
    if known is None or known.inputs[0].shape[1] < n_tokens:
        roomy = max(n_tokens, min(2 * n_tokens, model.context_length or 2 * n_tokens))
        with torch.no_grad():
            known = record(model, torch.zeros(1, roomy, dtype=torch.long, device=model.device))
        model.remembered[key] = known
    return known


def _of_any_text(called: Recording) -> bool:
    """Whether blocks are told nothing of the text itself but its states (Gemma 3n's are)."""
    others = [value for each in called.arguments for name, value in each.items() if name not in BY_POSITION]
    return not any(isinstance(value, Tensor) and value.dim() > 1 for value in others)


def _batches(rows: Iterable[Ids]) -> Iterator[list[Ids]]:
    batch: list[Ids] = []
    for ids in rows:
        if batch and (len(batch) + 1) * len(ids) > TOKENS:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


def _entering(model: LanguageModel, block: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    kept: list[Tensor] = []

    def keep(_block: nn.Module, args: tuple, kwargs: dict) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])
        raise PassEnded

    handle = block.register_forward_pre_hook(only_here(keep), with_kwargs=True)
    try:
        with ending_early():
            model.torch.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        handle.remove()
    return kept[0]
