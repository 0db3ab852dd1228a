"""Readers of the published files: known_1000.json (ROME) and counterfact.json, also gzipped, and our JSONL."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracer.errors import FileFormatError
from tracer.fact import Fact
from tracer.facts.bundled import filled

OPTIONAL = ("answer", "relation", "subject_at", "other")


def known_facts(path: str | Path) -> list[Fact]:
    """ROME's known facts: the prompt as published (it is not always template + subject).

    The answer is `attribute`, which need not be the immediate continuation.
    """
    return _facts(
        path,
        lambda record: Fact(
            prompt=record["prompt"],
            subject=record["subject"],
            answer=record["attribute"],
            relation=record.get("relation_id"),
        ),
    )


def counterfact(path: str | Path) -> list[Fact]:
    """CounterFact's true facts: prompt filled with the subject, answer `target_true`, beside it `target_new`."""

    def fact(record: dict[str, Any]) -> Fact:
        """The true fact of one record."""
        rewrite = record["requested_rewrite"]
        return Fact(
            prompt=filled(rewrite["prompt"], rewrite["subject"]),
            subject=rewrite["subject"],
            answer=rewrite["target_true"]["str"],
            relation=rewrite.get("relation_id"),
            subject_at=rewrite["prompt"].index("{}"),
            other=rewrite.get("target_new", {}).get("str"),
        )

    return _facts(path, fact)


def read_facts(path: str | Path) -> list[Fact]:
    """Facts of any file known here: known_1000, CounterFact, or our JSONL, whose fields are those of `Fact`."""
    records = read_records(path)
    if records and not isinstance(records[0], dict):
        raise FileFormatError(f"{path} holds {type(records[0]).__name__} values; facts are objects with a prompt each.")
    if records and "requested_rewrite" in records[0]:
        return counterfact(path)
    if records and "attribute" in records[0]:
        return known_facts(path)
    return _facts(
        path,
        lambda record: Fact(record["prompt"], record["subject"], **{name: record.get(name) for name in OPTIONAL}),
    )


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON array or of JSON lines, either gzipped or not.

    Raises:
        FileFormatError: missing, truncated or not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"There is no file {path}.")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
        lines = not text.lstrip().startswith("[")
        return [json.loads(line) for line in text.splitlines() if line.strip()] if lines else json.loads(text)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise FileFormatError(f"{path} is no whole JSON or JSONL file: {error}.") from error


def _facts(path: str | Path, fact: Callable[[dict[str, Any]], Fact]) -> list[Fact]:
    facts = []
    for number, record in enumerate(read_records(path)):
        try:
            facts.append(fact(record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            if not isinstance(record, dict):
                reason = f"{record!r} is not an object with a prompt and a subject"
            raise FileFormatError(f"{path}, record {number}: {reason}") from error
    return facts
