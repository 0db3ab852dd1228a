"""Retrievers by name: settings and files say "bm25", not an object.

One of your own is one line, before the edits that use it are made or loaded:
    RETRIEVERS["mine"] = lambda: Cosine(MyEncoder())
`THRESHOLDS` say from which similarity on a query is about a record, where settings do not.
"""

from __future__ import annotations

from collections.abc import Callable

from editing.errors import RequestError
from editing.memory.bm25 import BM25
from editing.memory.edit_distance import EditDistance
from editing.memory.hashed_words import HashedWords
from editing.memory.minilm import MiniLM
from editing.memory.retrieval import Cosine, Retriever
from editing.setting_checks import is_number

DEFAULT = "hashed-words"
RETRIEVERS: dict[str, Callable[[], Retriever]] = {
    DEFAULT: lambda: Cosine(HashedWords()),
    "bm25": BM25,
    "edit-distance": EditDistance,
    "minilm": lambda: Cosine(MiniLM()),
}
# Between what bundled facts and CounterFact (60 to 300 development records) say; others: 0.5.
THRESHOLDS = {DEFAULT: 0.4, "bm25": 0.1, "edit-distance": 0.5, "minilm": 0.68}


def retriever_named(name: str) -> Retriever:
    """The retriever of this name.

    Raises:
        RequestError: there is none.
    """
    if name not in RETRIEVERS:
        raise RequestError(f"There is no retriever {name!r}. Choose from {', '.join(RETRIEVERS)}.")
    return RETRIEVERS[name]()


def check_threshold(chosen: float | None) -> None:
    """Raises RequestError where a similarity was chosen that is no number."""
    if not (chosen is None or is_number(chosen)):
        raise RequestError(f"threshold={chosen!r} is no number. Write threshold=0.5, or None for the retriever's own.")


def least_similarity(name: str, chosen: float | None) -> float:
    """The one chosen, or this retriever's."""
    return THRESHOLDS.get(name, 0.5) if chosen is None else chosen
