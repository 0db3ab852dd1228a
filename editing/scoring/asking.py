"""What a model is really asked when edits that read prompts are attached to it.

Such an edit may rewrite a prompt, or hand it to another model. It decides once a query, on the prompt
alone: every target that is scored and every token that is generated after it follows that choice.
Branches at a module that go by where a prompt ends are told here where that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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


def goes_by_prompt_ends(model: LanguageModel) -> bool:
    """Whether an edit's branches may act by where a prompt ends: what prompts share is then not read once for all."""
    return any(attached.branches for edit in model.edits for attached in edit.attachments)


def come_last(model: LanguageModel, reader: Reader) -> None:
    """Lets `reader` read all prompts from now on, before those that came earlier, itself among them."""
    if reader in model.readers:
        model.readers.remove(reader)
    model.readers.append(reader)


def routes(model: LanguageModel, prompts: Sequence[str]) -> list[Route]:
    """Where each prompt goes: the reader that came last is asked first, the model itself last."""
    found: list[Route | None] = [None] * len(prompts)
    for reader in reversed(model.readers):
        still = [number for number, route in enumerate(found) if route is None]
        for number, route in zip(still, reader.routes(model, [prompts[n] for n in still]), strict=True):
            found[number] = route
    return [route or Route(prompt, model) for prompt, route in zip(prompts, found, strict=True)]
