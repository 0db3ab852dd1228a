"""What a memory keeps of one edit: its prompt and its answer, apart, so that neither must be cut out of a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from editing.request import EditRequest, fact_names
from tracer.model.inputs import sentence


@dataclass(frozen=True)
class MemoryRecord:
    """One remembered fact.

    Attributes:
        shown: what its editor puts before a query that falls under it, a text a block; empty for most.
    """

    prompt: str
    subject: str
    new: str
    relation: str | None = None
    id: str | None = None
    shown: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: EditRequest, shown: tuple[str, ...] = ()) -> MemoryRecord:
        """The record of a request; `shown` are texts to show with it."""
        return cls(request.prompt, request.subject, request.new.strip(), request.relation, request.id, shown)

    @property
    def text(self) -> str:
        """The fact as a sentence, without its period."""
        found = sentence(self.prompt, self.new)
        return found if found.endswith(self.new) else found.removesuffix(".")  # the prompt's, behind its gap

    @property
    def names(self) -> frozenset[tuple[str, str, str]]:
        """Under which the fact is known; two records that share one say the same fact."""
        return frozenset(fact_names(self.prompt, self.subject, self.relation))


def living(records: Iterable[MemoryRecord]) -> list[MemoryRecord]:
    """The records that count, in their order: of those that say the same fact the last one."""
    kept: list[MemoryRecord] = []
    known: set[tuple[str, str, str]] = set()
    for record in reversed(list(records)):
        if not record.names & known:
            kept.append(record)
            known |= record.names
    return kept[::-1]
