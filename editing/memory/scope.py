"""SERAC's scope classifier: does a query fall under an edit? A small head over an encoder's vectors.

h(t) = [w * E(t), U E(t)]                   w [width], U [rank, width]
s(u, x) = exp(-||h(u) - h(x)||^2)           in (0, 1]; 1 for the edit's own prompt
In scope where s > 1/2, that is ||h(u) - h(x)||^2 < ln 2 (Mitchell et al. 2022, arXiv:2206.06520, sec. 3).
What no training text has, such as the words of a new subject, keeps the weight that w began with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from editing.errors import RequestError
from editing.memory.retrieval import DECIMALS, Cosine, Encoder, Index
from editing.memory.retrievers import retriever_named
from editing.training.checkpoint import EDITOR
from editing.training.result import TrainingResult
from tracer.storage import of_this_version, read_tensors, write_tensors

KIND = "scope classifier"


@dataclass(frozen=True, eq=False)
class Scope:
    """A trained head. Retrieves records too: it is what says how near a query is.

    Attributes:
        encoder: name of the retriever whose encoder gives E.
        scale: w, [width] float32.
        mix: U, [rank, width] float32.
        trained: how: settings, data, losses.
        result: how the training went; None where it was read from a file.
    """

    encoder: str
    scale: Tensor
    mix: Tensor
    trained: dict[str, Any] = field(default_factory=dict)
    result: TrainingResult | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.encoder}, head {self.digest[:12]}"

    @property
    def digest(self) -> str:
        """sha256 of the head."""
        parts = (tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in (self.scale, self.mix))
        return hashlib.sha256(self.encoder.encode() + b"".join(parts)).hexdigest()

    @cached_property
    def _encoder(self) -> Encoder:
        return encoder_named(self.encoder)

    @property
    def name(self) -> str:
        """The encoder's name and the start of the head's digest, as files keep them."""
        return f"{self._encoder.name}, head {self.digest[:12]}"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """`h` of each text, [text, width + rank] float64."""
        vectors = self._encoder.encode(texts)
        scale, mix = (tensor.double().numpy() for tensor in (self.scale, self.mix))
        return np.concatenate((vectors * scale, vectors @ mix.T), axis=1)

    def index(self, keys: Sequence[str], known: Index | None = None) -> ScopeIndex:
        """Embeds the keys that are new."""
        points = dict(known.points) if isinstance(known, ScopeIndex) else {}
        missing = [key for key in dict.fromkeys(keys) if key not in points]
        points |= dict(zip(missing, self.embed(missing), strict=True)) if missing else {}
        return ScopeIndex(self, tuple(keys), {key: points[key] for key in keys})

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically."""
        about = {"kind": KIND, "encoder": self.encoder, "trained": self.trained}
        write_tensors(path, {"scale": self.scale, "mix": self.mix}, about)


@dataclass(frozen=True, eq=False)
class ScopeIndex:
    """Embedded keys, by text."""

    scope: Scope
    keys: tuple[str, ...]
    points: dict[str, np.ndarray] = field(repr=False)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """`s` of each query and key, [query, key] float64, from one product of matrices."""
        if not (queries and self.keys):
            return np.zeros((len(queries), len(self.keys)))
        keys, asked = np.stack([self.points[key] for key in self.keys]), self.scope.embed(queries)
        squares = (asked**2).sum(1)[:, None] + (keys**2).sum(1) - 2 * asked @ keys.T
        return np.round(np.exp(-np.maximum(squares, 0)), DECIMALS)


def untrained_scope(encoder: str, *, rank: int, scale: float, seed: int) -> Scope:
    """`w` constant, `U` small and random: as near as the encoder's cosines say."""
    width = encoder_named(encoder).width
    draw = torch.randn(rank, width, generator=torch.Generator().manual_seed(seed))
    return Scope(encoder, torch.full((width,), scale), 0.01 * draw)


def load_scope(path: str | Path) -> Scope:
    """Reads what `Scope.save` wrote, or the best one of a training's folder.

    Raises:
        FileFormatError: missing, damaged or something else.
    """
    path = Path(path) / EDITOR if Path(path).is_dir() else Path(path)
    tensors, about = read_tensors(path, KIND)
    with of_this_version(path, "a scope classifier"):
        return Scope(str(about["encoder"]), tensors["scale"], tensors["mix"], dict(about["trained"]))


def encoder_named(name: str) -> Encoder:
    """The encoder behind this retriever.

    Raises:
        RequestError: the retriever has none.
    """
    retriever = retriever_named(name)
    if not isinstance(retriever, Cosine):
        raise RequestError(f'A scope is learned over vectors, and {name!r} has none. Write "hashed-words" or "minilm".')
    return retriever.encoder
