"""Texts as hashed counts of words, rare words counting most: no weights to fetch, equal on every machine.

E(t)[j] = sum over words and pairs w of t with h(w) = j of  sign(w) (1 + ln count(w)) idf(w),  then length 1
idf(w)  = 1 + ln((1 + n) / (1 + df(w)))                     df over the n bundled prompts
The words that prompts are made of ("the", "capital", "is") count little, names count most.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tracer.facts import bundled

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class HashedWords:
    """The encoder of this module; it compares words, not meanings.

    Attributes:
        width: of the vectors; few words of a memory share a place.
        pair_weight: of two adjacent words, beside that of a word.
    """

    width: int = 2048
    pair_weight: float = 0.5

    @property
    def name(self) -> str:
        """The encoder's name with its settings, as files keep it."""
        return f"hashed TF-IDF of words and pairs (width {self.width}, pairs {self.pair_weight}), cosine"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of length 1, [text, width]; 0 for a text without words."""
        return np.stack([self._vector(text) for text in texts]) if texts else np.zeros((0, self.width))

    def _vector(self, text: str) -> np.ndarray:
        found = words(text)
        vector = np.zeros(self.width)
        for feature, count in Counter(found + pairs(found)).items():
            weight = self.pair_weight if " " in feature else 1.0
            place, sign = _place(feature, self.width)
            vector[place] += sign * weight * (1 + math.log(count)) * rarity(feature)
        length = np.linalg.norm(vector)
        return vector / length if length else vector


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return WORD.findall(text.lower())


def pairs(found: Sequence[str]) -> list[str]:
    """Adjacent words, joined by a blank."""
    return [f"{one} {other}" for one, other in zip(found, found[1:], strict=False)]


def rarity(feature: str) -> float:
    """The idf of a word or pair among the bundled prompts."""
    n, seen = _document_frequencies()
    return 1 + math.log((1 + n) / (1 + seen.get(feature, 0)))


@cache
def _document_frequencies() -> tuple[int, dict[str, int]]:
    prompts = [words(fact.prompt) for fact in bundled()]
    return len(prompts), Counter(feature for found in prompts for feature in {*found, *pairs(found)})


def _place(feature: str, width: int) -> tuple[int, int]:
    """Where a feature is counted, and with which sign."""
    digest = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "big")
    return (digest >> 1) % width, 1 if digest & 1 else -1
