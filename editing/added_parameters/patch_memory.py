"""What a patch should not fire on: what enters the last MLP in other texts.

Half of the rows come from bundled facts, as near to a request as texts get, half from text that the model
writes itself. A quarter as many again are kept apart, to see when training should end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.added_parameters.passing import Noted
from editing.added_parameters.side_branch import mlp_module, wide
from editing.edit import unedited
from editing.scoring.generation import sample_texts
from tracer.anatomy.hidden import by_token
from tracer.facts import bundled, spread_over_relations
from tracer.model import LanguageModel
from tracer.model.tokens import encode, joined, right_padded
from tracer.progress import bar

CHUNK = 128  # tokens in one text
BATCH = 32  # texts in one pass
TOP_K = 50
APART = 0.25  # rows for validation, as a share of the others


@dataclass(frozen=True, eq=False)
class Memory:
    """Rows [row, d_model] to train against, and others to validate by."""

    trained: Tensor
    validation: Tensor


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of some texts, [row, d_model], and which text each is of, [row]."""

    rows: Tensor
    text: Tensor


def memory_of(
    model: LanguageModel, n_rows: int, *, seed: int, without: Sequence[str] = (), progress: bool | None = None
) -> Memory:
    """Rows of the unedited model; measured once, then remembered by the model object.

    Args:
        model: its edits, if any, are taken out for the measurement.
        n_rows: to train against.
        seed: of the model's own text.
        without: subjects whose bundled facts are left out.
        progress: show a bar.
    """
    facts = spread_over_relations([fact for fact in bundled() if fact.answer])
    with unedited(model):
        key = ("t-patcher memory", model.fingerprint(), n_rows, seed)
        if key not in model.remembered:
            each = round(n_rows * (1 + APART)) // 2
            with bar(2 * each, "memory", show=progress, unit="row") as steps:
                said = _rows(model, [joined(fact.prompt, fact.answer or "") for fact in facts], each)
                steps.update(len(said.rows))
                written = _rows(model, _own_texts(model, each, seed), each)
                steps.update(len(written.rows))
            model.remembered[key] = (said, written)
    said, written = model.remembered[key]
    allowed = torch.tensor([fact.subject not in without for fact in facts], device=said.text.device)[said.text]
    kinds = [said.rows[allowed], written.rows]
    return Memory(*(torch.cat(parts) for parts in zip(*map(_parted, kinds), strict=True)))


def _parted(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to train against, and the last ones to validate by."""
    n_trained = math.ceil(len(rows) / (1 + APART))
    return rows[:n_trained], rows[n_trained:]


def _own_texts(model: LanguageModel, n_rows: int, seed: int) -> list[str]:
    length = _longest(model)
    return sample_texts(model, -(-n_rows // (length - 1)), length=length, seed=seed, top_k=TOP_K)


def _longest(model: LanguageModel) -> int:
    """Tokens in one text: CHUNK, or what the model's context holds beside a start token."""
    return min(CHUNK, (model.context_length or CHUNK + 2) - 2)


def _rows(model: LanguageModel, texts: Sequence[str], most: int) -> _Rows:
    """What enters the last MLP at the texts' tokens, the first of each left out, `most` rows at most."""
    rows, of_text, begin = [], [], 0
    entering = Noted(mlp_module(model, model.n_layers - 1), lambda hidden: hidden)
    try:
        while begin < len(texts) and sum(map(len, rows)) < most:
            encoded = [encode(model.tokenizer, text).ids[: _longest(model)] for text in texts[begin : begin + BATCH]]
            ids, mask = right_padded(encoded, device=model.device)
            with torch.inference_mode():
                model.torch.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            real = mask.bool()
            real[:, 0] = False
            rows.append(wide(by_token(entering.value, len(ids))[real]))
            of_text.append(begin + real.nonzero()[:, 0])
            begin += BATCH
    finally:
        entering.remove()
    return _Rows(torch.cat(rows)[:most].clone(), torch.cat(of_text)[:most])
