"""Whether a model's context holds what a memory puts before a query."""

from __future__ import annotations

from editing.errors import EditFailedError
from tracer.model import LanguageModel
from tracer.model.tokens import encode


def room_after(model: LanguageModel, text: str) -> int | None:
    """Tokens that the context still takes behind this text, negative where it is too long; None: any number."""
    if model.context_length is None:
        return None
    return model.context_length - len(encode(model.tokenizer, text).ids)


def check_room(model: LanguageModel, text: str, *, least: int, what: str, instead: str) -> None:
    """Sees that a query can be asked at all.

    Args:
        model: that would read it.
        text: all that it reads.
        least: tokens that must be left for the answer.
        what: the text, in words.
        instead: what to do where it does not fit.

    Raises:
        EditFailedError: it does not.
    """
    room = room_after(model, text)
    if room is not None and room < least:
        held = model.context_length
        raise EditFailedError(
            f"{what} take {(held or 0) - room} tokens, and {model.name} reads {held}, of which {least} are for the "
            f"answer. {instead}"
        )
