"""Records kept one JSON line each: a run that is killed loses at most the line it was writing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tracer.errors import FileFormatError
from tracer.storage import to_json


class Lines:
    """A file of JSON lines that only grows."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._whole = False  # as far as this object knows

    def read(self) -> list[dict[str, Any]]:
        """The records, without the beginning of a line that a killed run left or a running one has just begun.

        Raises:
            FileFormatError: a line in the middle is damaged.
        """
        if not self.path.is_file():
            return []
        raw = self.path.read_bytes()
        try:
            return [json.loads(line) for line in raw[: _end_of_lines(raw)].decode("utf-8").split("\n") if line]
        except ValueError as error:
            raise FileFormatError(f"{self.path} is damaged ({error}). Remove it and run again.") from error

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds records and waits until they are on disk; only one process at a time may."""
        text = "".join(f"{to_json(record)}\n" for record in records)
        if text:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._cut()
            with self.path.open("ab") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())

    def _cut(self) -> None:
        """Cuts off the beginning of a line that a killed run left."""
        if not self._whole and self.path.is_file():
            raw = self.path.read_bytes()
            if _end_of_lines(raw) < len(raw):
                os.truncate(self.path, _end_of_lines(raw))
        self._whole = True


def _end_of_lines(raw: bytes) -> int:
    return raw.rfind(b"\n") + 1
