"""Levenshtein's distance, as a share of the longer text: how MemPrompt finds a question asked before.

similarity(q, k) = 1 - Lev(q, k) / max(|q|, |k|)
Both are read without tags, punctuation, upper case and doubled blanks. One row of the table of distances is
computed for all keys at once: d[j] = min(c[j], d[j-1] + 1) is a running minimum of c[j] - j.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from editing.memory.retrieval import Index

TAG = re.compile(r"<[^<>]*>")


@dataclass(frozen=True)
class EditDistance:
    """The retriever of this module."""

    name: str = "1 - Levenshtein / longer text"

    def index(self, keys: Sequence[str], known: Index | None = None) -> EditDistanceIndex:
        """The keys as code points, padded."""
        return EditDistanceIndex(tuple(map(normalised, keys)))


@dataclass(frozen=True)
class EditDistanceIndex:
    """Normalised keys, to be ranked by edit distance."""

    keys: tuple[str, ...]

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Similarities in [0, 1]; two texts without letters are equal."""
        found = np.zeros((len(queries), len(self.keys)))
        for row, query in zip(found, map(normalised, queries), strict=True):
            row[:] = 1 - levenshtein(query, self.keys) / np.array([max(len(query), len(key), 1) for key in self.keys])
        return found


def normalised(text: str) -> str:
    """Without tags, upper case, punctuation and doubled blanks."""
    kept = "".join(letter if letter.isalnum() else " " for letter in TAG.sub(" ", text).lower())
    return " ".join(kept.split())


def levenshtein(query: str, keys: Sequence[str]) -> np.ndarray:
    """Insertions, deletions and replacements between the query and each key, [key]."""
    lengths = np.array([len(key) for key in keys], dtype=int)
    letters = np.zeros((len(keys), max(lengths, default=0)), dtype=np.int64)  # 0 is no letter of a normalised text
    for row, key in zip(letters, keys, strict=True):
        row[: len(key)] = [ord(letter) for letter in key]
    columns = np.arange(letters.shape[1] + 1)
    distance = np.tile(columns, (len(keys), 1))
    for number, letter in enumerate(query, start=1):
        changed = np.minimum(distance[:, 1:] + 1, distance[:, :-1] + (letters != ord(letter)))
        first = np.full((len(keys), 1), number)
        distance = np.minimum.accumulate(np.hstack((first, changed)) - columns, axis=1) + columns
    return distance[np.arange(len(keys)), lengths]
