"""BM25: how many of a query's words a key has, rare words counting most, long keys less.

score(q, k) = sum over words w of q of  idf(w) tf (a + 1) / (tf + a (1 - b + b |k| / mean |k|))
idf(w)      = ln(1 + (n - df + 1/2) / (df + 1/2))           over the n keys
Robertson and Zaragoza 2009, a = 1.2, b = 0.75. Divided by the sum of idf(w) (a + 1), the score of a key that
repeats each of the query's words for ever: then it lies in [0, 1) and a threshold means the same for all queries.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from editing.memory.hashed_words import words
from editing.memory.retrieval import DECIMALS, Index


@dataclass(frozen=True)
class BM25:
    """The retriever of this module.

    Attributes:
        saturation: a, how soon more of one word stops counting.
        length_weight: b, how much long keys lose.
    """

    saturation: float = 1.2
    length_weight: float = 0.75

    @property
    def name(self) -> str:
        """The retriever's name with its settings, as files keep it."""
        return f"BM25 (a {self.saturation}, b {self.length_weight}), share of the most"

    def index(self, keys: Sequence[str], known: Index | None = None) -> BM25Index:
        """Counts the keys' words; what an earlier index counted is of no use, for idf is over all keys."""
        counts = tuple(Counter(words(key)) for key in keys)
        return BM25Index(self, counts, Counter(word for count in counts for word in count))


@dataclass(frozen=True, eq=False)
class BM25Index:
    """Keys whose words are counted, to be ranked by BM25."""

    settings: BM25
    counts: tuple[Counter[str], ...]
    document_frequency: Counter[str]

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """By the formula, query by query."""
        found = np.zeros((len(queries), len(self.counts)))
        lengths = np.array([count.total() for count in self.counts], dtype=float)
        a, b = self.settings.saturation, self.settings.length_weight
        damping = a * (1 - b + b * lengths / max(lengths.mean(), 1.0)) if len(lengths) else lengths
        for row, query in zip(found, queries, strict=True):
            most = 0.0
            for word, times in Counter(words(query)).items():
                seen = np.array([count[word] for count in self.counts], dtype=float)
                weight = times * self._idf(word) * (a + 1)
                row += weight * seen / np.maximum(seen + damping, 1e-300)
                most += weight
            row /= most or 1.0
        return np.round(found, DECIMALS)

    def _idf(self, word: str) -> float:
        df = self.document_frequency[word]
        return math.log(1 + (len(self.counts) - df + 0.5) / (df + 0.5))
