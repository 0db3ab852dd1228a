"""What a model writes in MeLLo's loop: questions side by side, their common beginning read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from editing.memory.room import room_after
from editing.scoring.last_read import LastRead
from editing.scoring.texts_together import written_until
from tracer.model import LanguageModel
from tracer.model.tokens import encode


class HopWriter:
    """Goes on with texts that begin alike.

    Args:
        model: that writes.
        beginning: of all texts, which is read once if the context holds it.
        stops: up to the first of them.
        new_tokens: at most.
        spare: tokens of the context that stay free behind it.
    """

    def __init__(
        self, model: LanguageModel, beginning: str, stops: Sequence[str], *, new_tokens: int, spare: int
    ) -> None:
        self._model, self._stops, self._new_tokens, self._spare = model, stops, new_tokens, spare
        self._beginning = LastRead()
        self._own: dict[int, LastRead] = {}
        if beginning and self._room(beginning) > 0:
            self._beginning.read(model, encode(model.tokenizer, beginning).ids)

    def forget(self) -> None:
        """Other questions follow: drops what was read but for the beginning."""
        self._own.clear()

    def write(self, texts: dict[int, str]) -> dict[int, str | None]:
        """What the model writes after each text, by the number of its question; None: it leaves no room."""
        rooms = {number: self._room(text) for number, text in texts.items()}
        fit = [number for number, room in rooms.items() if room > 0]
        self._own |= {number: self._beginning.fork() for number in fit if number not in self._own}
        new, last = [rooms[number] for number in fit], [self._own[number] for number in fit]
        said = written_until(self._model, [texts[number] for number in fit], self._stops, new_tokens=new, last=last)
        return dict.fromkeys(texts) | dict(zip(fit, said, strict=True))

    def _room(self, text: str) -> int:
        room = room_after(self._model, text)
        return self._new_tokens if room is None else min(self._new_tokens, room - self._spare)
