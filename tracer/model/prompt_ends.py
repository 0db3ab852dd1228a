"""Where each row's prompt ends: said to what acts inside a model and goes by that, such as an edit's codebook.

A row may hold more than a prompt: an answer that is scored, or padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tracer.model.language_model import LanguageModel


@contextmanager
def prompts_end_at(model: LanguageModel, last: Sequence[int]) -> Iterator[None]:
    """Says at which position each row's prompt ends, to branches that go by that, while the block runs."""
    with _said(model, torch.tensor(list(last), device=model.device)):
        yield


@contextmanager
def every_prompt_ends_at(model: LanguageModel, last: int) -> Iterator[None]:
    """The same for any number of rows; passes over fewer tokens, which follow a cache, end with their last one."""
    with _said(model, torch.tensor(last)):
        yield


@contextmanager
def prompts_end_last(model: LanguageModel, n_rows: int, n_tokens: int) -> Iterator[None]:
    """Says that prompts end with the last token of each row, padding or not, unless something is said already."""
    if model.torch.__dict__.get("_prompt_ends") is not None:
        yield
        return
    with prompts_end_at(model, [n_tokens - 1] * n_rows):
        yield


def prompt_ends(model: nn.Module, n_rows: int, n_tokens: int, mask: Tensor | None = None) -> Tensor:
    """The position at which each row's prompt ends, [row]; in a bare forward pass that of the last token.

    `mask`: the pass's own, 1 for tokens, 0 for padding, [row, token], those before a cache's end included; without
    one nothing is padding.
    """
    said = model.__dict__.get("_prompt_ends")
    if said is None and mask is not None and mask.shape[0] == n_rows and mask.shape[1] >= n_tokens:
        seen = mask[:, mask.shape[1] - n_tokens :].long()
        return (n_tokens - 1 - seen.flip(1).argmax(1)).cpu()
    if said is None:
        return torch.full((n_rows,), n_tokens - 1)
    if said.dim() == 0:
        return said.clamp(max=n_tokens - 1).expand(n_rows)
    assert len(said) == n_rows, "prompts of another batch"
    return said


@contextmanager
def _said(model: LanguageModel, ends: Tensor) -> Iterator[None]:
    store = model.torch.__dict__
    outer = store.get("_prompt_ends")
    store["_prompt_ends"] = ends
    try:
        yield
    finally:
        store["_prompt_ends"] = outer
