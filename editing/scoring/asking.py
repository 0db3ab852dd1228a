"""What a model is really asked when edits that read prompts are attached to it.

Such an edit may rewrite a prompt, or hand it to another model. It decides once a query, on the prompt
alone: every target that is scored and every token that is generated after it follows that choice.
Branches at a module that go by where a prompt ends are told here where that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from tracer.model import LanguageModel


@dataclass(frozen=True)
class Route:
    """What is read in place of a prompt, and which model reads it."""

    prompt: str
    model: LanguageModel


class Reader(Protocol):
    """Whatever reads prompts before the model does."""

    def routes(self, model: LanguageModel, prompts: Sequence[str]) -> list[Route | None]:
        """Where each prompt goes; None: it is none of this reader's."""
        ...


def add_reader(model: LanguageModel, reader: Reader) -> Callable[[], None]:
    """Lets `reader` read all prompts from now on; what is returned ends that."""
    model.readers.append(reader)
    return lambda: model.readers.remove(reader)


def routes(model: LanguageModel, prompts: Sequence[str]) -> list[Route]:
    """Where each prompt goes: the reader that came last is asked first, the model itself last."""
    found: list[Route | None] = [None] * len(prompts)
    for reader in reversed(model.readers):
        still = [number for number, route in enumerate(found) if route is None]
        for number, route in zip(still, reader.routes(model, [prompts[n] for n in still]), strict=True):
            found[number] = route
    return [route or Route(prompt, model) for prompt, route in zip(prompts, found, strict=True)]


@contextmanager
def prompts_end_at(model: LanguageModel, last: Sequence[int]) -> Iterator[None]:
    """Says at which position each row's prompt ends, to branches that go by that, while the block runs."""
    store = model.torch.__dict__
    outer = store.get("_prompt_ends")
    store["_prompt_ends"] = torch.tensor(list(last), device=model.device)
    try:
        yield
    finally:
        store["_prompt_ends"] = outer


def prompt_ends(model: nn.Module, n_rows: int, n_tokens: int) -> Tensor:
    """The position at which each row's prompt ends, [row]; in a bare forward pass the last one."""
    said = model.__dict__.get("_prompt_ends")
    if said is None:
        return torch.full((n_rows,), n_tokens - 1)
    assert len(said) == n_rows, "prompts of another batch"
    return said
