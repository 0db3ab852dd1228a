"""IKE: knowledge edited in the context (Zheng et al. 2023, arXiv:2305.12740).

No weight changes and nothing is trained. Every query reads, before itself, demonstrations of facts like the
edited one, the edit's own block, and the new fact once more:

    {demonstrations, the most similar last}
    New Fact: {x*} {y*}
    Prompt: {x*} {y*}

    New Fact: {x*} {y*}
    Prompt: {x}
Without demonstrations only the last block is there: the paper's baseline PROMPT, elsewhere called ICE.
Of an encoder-decoder the encoder reads all of this; a gap in a prompt is filled in facts and open in the query.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from editing.errors import EditFailedError, RequestError
from editing.memory.demonstrations import BREAK, block, demonstrated
from editing.memory.memory import Memory, MemoryEditor
from editing.memory.record import MemoryRecord
from editing.memory.retrieval import Index
from editing.memory.retrievers import check_threshold, least_similarity
from editing.memory.room import check_room, room_after
from editing.memory.scoped import ScopedFact, ScopedFacts, bundled_facts
from editing.request import EditRequest
from editing.scoring.asking import Route
from editing.setting_checks import check_whole
from tracer.model import LanguageModel
from tracer.model.inputs import without_gap

Which = Literal["own", "nearest"]


@dataclass(frozen=True, kw_only=True)
class IKE(MemoryEditor, method="ike"):
    """The method of this module.

    Attributes:
        count: demonstrations before the edit; 0: the new fact alone.
        route: "own" puts the one remembered edit before every query, as published; "nearest" serves many: the
            edit most like the query, or none where it is not `threshold` like it.
        threshold: of "nearest"; None: the retriever's own, `best_threshold` finds one for other facts.
        reserve: tokens of the context kept free for the answer.
        demonstrations: facts to show; None: the bundled ones. Those that name the edit's subject are never shown.
    """

    count: int = 32
    route: Which = "own"
    threshold: float | None = None
    reserve: int = 64
    demonstrations: ScopedFacts | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.route not in get_args(Which):
            raise RequestError(f'There is no route {self.route!r}. Write route="own" or route="nearest".')
        check_whole(self, {"count": 32, "reserve": 64}, least=0)
        check_threshold(self.threshold)
        if not isinstance(self.demonstrations, ScopedFacts | None):
            raise RequestError(
                f"demonstrations={self.demonstrations!r} are no facts with their scopes. Write "
                f"demonstrations=editing.memory.read_scoped_facts(path)."
            )

    @cached_property
    def _corpus(self) -> tuple[ScopedFacts, Index]:
        """The facts to show, and an index of them as edits are looked up."""
        facts = self.demonstrations or bundled_facts()
        return facts, self.finder().index([_looked_up(fact.prompt, fact.new) for fact in facts.facts])

    def settings(self) -> dict[str, Any]:
        """Without the facts: what a record shows is kept with it."""
        names = (one.name for one in dataclasses.fields(self) if one.name != "demonstrations")
        return {name: getattr(self, name) for name in names}

    def remembered(
        self, model: LanguageModel, requests: Sequence[EditRequest], seed: int
    ) -> list[tuple[MemoryRecord, dict[str, Any]]]:
        """Each record with its demonstrations and its own block."""
        held = []
        for request in requests:
            record = MemoryRecord.of(request)
            facts = self._like(record)
            shown = [text for _, text in demonstrated(facts, seed)]
            own = [block(record.text, record.text)] if shown else []
            record = dataclasses.replace(record, shown=(*shown, *own))
            dropped = self.before(model, record, record.prompt)[1]
            source = str(self._corpus[0]) if self.count else "none"
            held.append((record, {"demonstrations": source, "shown": len(shown) - dropped, "dropped": dropped}))
        return held

    def _like(self, record: MemoryRecord) -> list[ScopedFact]:
        """The `count` facts most like the record's, the most similar last.

        Raises:
            RequestError: there are not enough.
        """
        if not self.count:
            return []
        facts, index = self._corpus
        allowed = np.array([not fact.shows(record.subject) for fact in facts.facts])
        if allowed.sum() < self.count:
            raise RequestError(
                f"{facts} has {allowed.sum()} facts that do not name {record.subject!r}. Write count={allowed.sum()}."
            )
        scores = np.where(allowed, index.scores([_looked_up(record.prompt, record.new)])[0], -np.inf)
        order = np.argsort(-scores, kind="stable")[: self.count]
        return [facts.facts[place] for place in reversed(order)]

    def before(self, model: LanguageModel, record: MemoryRecord, query: str) -> tuple[str, int]:
        """What is read in place of `query` under this edit, and how many demonstrations did not fit.

        The least similar go first; the edit's own blocks always stay.
        """
        last = block(record.text, query)
        for dropped in range(max(1, len(record.shown))):
            text = BREAK.join((*record.shown[dropped:], last))
            room = room_after(model, text)
            if room is None or room >= self.reserve:
                return text, dropped
        return text, dropped

    def check_fits(self, model: LanguageModel, record: MemoryRecord) -> None:
        """Raises EditFailedError where the model's context does not hold the new fact and its own prompt."""
        text = self.before(model, record, record.prompt)[0]
        check_room(model, text, least=1, what="The new fact and a question", instead="Use a shorter prompt.")

    def check(self, model: LanguageModel, records: Sequence[MemoryRecord]) -> None:
        """Raises EditFailedError for a second fact where all queries get the one."""
        if self.route == "own" and len(records) > 1:
            raise EditFailedError(
                f'route="own" puts one edit before every query, and {len(records)} are remembered. Undo the others, '
                f'or write IKE(route="nearest"), which looks for the edit that a query is about.'
            )

    def routes(self, model: LanguageModel, memory: Memory, prompts: Sequence[str]) -> list[Route | None]:
        """The new fact and its demonstrations before each query; with "nearest" before those that are like it."""
        if self.route == "own":
            return [Route(self.before(model, memory.records[0], prompt)[0], model) for prompt in prompts]
        least = least_similarity(self.retriever, self.threshold)
        return [
            Route(self.before(model, record, prompt)[0], model) if score >= least else None
            for prompt, (record, score) in zip(prompts, memory.nearest(prompts), strict=True)
        ]


def _looked_up(prompt: str, new: str) -> str:
    """The text by which facts to show are found."""
    return block(f"{without_gap(prompt)} {new}", without_gap(prompt))
