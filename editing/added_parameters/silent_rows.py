"""What a patch should not fire on: what enters the last MLP in other texts (`patch_texts`).

A quarter as many rows again are kept apart, to see when training should end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.added_parameters.passing import Noted
from editing.added_parameters.patch_texts import Read, said, written
from editing.edit import original_fingerprint, unedited
from editing.scoring.forced_decoder import ForcedDecoder
from tracer.anatomy.hidden import by_token
from tracer.model import LanguageModel
from tracer.model.tokens import right_padded
from tracer.precision import wide
from tracer.progress import bar

BATCH = 32  # texts in one pass
APART = 0.25  # rows for validation, as a share of the others
LEAST_ROWS = 8  # to train against: of fewer each kind of text leaves none to validate by


@dataclass(frozen=True, eq=False)
class SilentRows:
    """Rows [row, d_model] to train against, and others to validate by."""

    trained: Tensor
    validation: Tensor


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of some texts, [row, d_model], and the subject that the text of each is about, "" for none."""

    rows: Tensor
    subjects: tuple[str, ...]


def silent_rows(
    model: LanguageModel, n_rows: int, *, seed: int, without: Sequence[str] = (), progress: bool | None = None
) -> SilentRows:
    """Rows of the unedited model; measured once, then remembered by the model object.

    Args:
        model: its edits, if any, are taken out for the measurement.
        n_rows: to train against, at most; short texts may give fewer.
        seed: of the model's own text.
        without: subjects whose texts are left out.
        progress: show a bar.
    """
    key = ("t-patcher memory", original_fingerprint(model), n_rows, seed)
    if key not in model.remembered:
        each, found = round(n_rows * (1 + APART)) // 2, []
        with unedited(model), bar(2 * each, "memory", show=progress, unit="row") as steps:
            for texts in (said(model), written(model, each, seed)):
                found.append(_rows(model, texts, each))
                steps.update(len(found[-1].rows))
        model.remembered[key] = found
    kinds = [_about_others(found, without) for found in model.remembered[key]]
    return SilentRows(*(torch.cat(parts) for parts in zip(*map(_parted, kinds), strict=True)))


def _about_others(found: _Rows, without: Sequence[str]) -> Tensor:
    allowed = [subject not in without for subject in found.subjects]
    return found.rows[torch.tensor(allowed, device=found.rows.device)]


def _parted(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to train against, and the last ones to validate by."""
    n_trained = math.ceil(len(rows) / (1 + APART))
    return rows[:n_trained], rows[n_trained:]


def _rows(model: LanguageModel, texts: Sequence[Read], most: int) -> _Rows:
    """What enters the last MLP at the tokens of these texts that count, `most` rows at most."""
    rows, subjects, begin = [], [], 0
    entering = Noted(model.anatomy.mlp_entrance(model.n_layers - 1), lambda hidden: hidden)
    try:
        while begin < len(texts) and len(subjects) < most:
            some = texts[begin : begin + BATCH]
            _run(model, some)
            hidden = by_token(entering.value, len(some))
            for text, states in zip(some, hidden, strict=True):
                states = states[text.first : len(text.ids) - text.n_encoder]
                rows.append(wide(states))
                subjects += [text.subject] * len(states)
            begin += BATCH
    finally:
        entering.remove()
    return _Rows(torch.cat(rows)[:most].clone(), tuple(subjects[:most]))


@torch.inference_mode()
def _run(model: LanguageModel, texts: Sequence[Read]) -> None:
    if model.is_encoder_decoder:
        ForcedDecoder.of(model, [text.ids for text in texts], [text.n_encoder for text in texts]).outputs()
        return
    ids, mask = right_padded([text.ids for text in texts], device=model.device)
    model.torch.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
