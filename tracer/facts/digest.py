"""A fingerprint of a list of facts, for records."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from tracer.fact import Fact
from tracer.storage import to_json


def facts_digest(facts: Sequence[Fact]) -> str:
    """sha256 over the facts as JSON, in their order."""
    return hashlib.sha256(to_json([dataclasses.asdict(fact) for fact in facts]).encode()).hexdigest()
