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

    def read(self) -> list[dict[str, Any]]:
        """The records; the beginning of a line that a killed run left is cut off the file.

        Raises:
            FileFormatError: a line in the middle is damaged.
        """
        if not self.path.is_file():
            return []
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(self.path, len(whole))
        try:
            return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
        except ValueError as error:
            raise FileFormatError(f"{self.path} is damaged ({error}). Remove it and run again.") from error

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds records and waits until they are on disk."""
        text = "".join(f"{to_json(record)}\n" for record in records)
        if text:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
