"""Which remembered text is nearest to a query: encoders, cosines, and an index that grows.

similarity(q, k) = <E(q), E(k)>      E(t) of length 1: the cosine

A text is always encoded by itself, so what stands beside it in a batch cannot change a decision.
Similarities are rounded far below any real difference: equal texts tie exactly, and the first one wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

DECIMALS = 12  # of similarities: two orders of summation agree to this


class Encoder(Protocol):
    """Turns a text into a vector."""

    @property
    def name(self) -> str:
        """Of the encoder with all that its vectors depend on."""
        ...

    @property
    def width(self) -> int:
        """Length of its vectors."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of length 1, or 0 for a text without words, [text, width] float64."""
        ...


class Index(Protocol):
    """Keys made ready to be searched."""

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Similarity of each query to each key, larger is nearer, [query, key] float64."""
        ...


class Retriever(Protocol):
    """A way of saying how near two texts are."""

    @property
    def name(self) -> str:
        """Of the retriever with all that its scores depend on."""
        ...

    def index(self, keys: Sequence[str], known: Index | None = None) -> Index:
        """The keys made ready; those of `known`, an earlier index, need not be read again."""
        ...


@dataclass(frozen=True)
class Cosine:
    """Similarity is the cosine of an encoder's vectors."""

    encoder: Encoder

    @property
    def name(self) -> str:
        """The encoder's name, as files keep it."""
        return self.encoder.name

    def index(self, keys: Sequence[str], known: Index | None = None) -> CosineIndex:
        """One vector a key."""
        vectors = dict(known.vectors) if isinstance(known, CosineIndex) else {}
        missing = [key for key in dict.fromkeys(keys) if key not in vectors]
        vectors |= dict(zip(missing, self.encoder.encode(missing), strict=True)) if missing else {}
        return CosineIndex(self.encoder, tuple(keys), {key: vectors[key] for key in keys})


@dataclass(frozen=True, eq=False)
class CosineIndex:
    """Keys with their vectors, by text."""

    encoder: Encoder
    keys: tuple[str, ...]
    vectors: dict[str, np.ndarray] = field(repr=False)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """One product of matrices."""
        if not (queries and self.keys):
            return np.zeros((len(queries), len(self.keys)))
        keys = np.stack([self.vectors[key] for key in self.keys])
        return np.round(self.encoder.encode(queries) @ keys.T, DECIMALS)


def nearest(scores: np.ndarray) -> list[tuple[int, float]]:
    """For each row the first of its largest entries, and that entry; scores are [query, key]."""
    return [(int(row.argmax()), float(row.max())) for row in scores]
