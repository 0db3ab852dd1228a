"""Edges between what writes to the residual stream and what reads it, and their scores."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch

from tracer.effect import Settings
from tracer.errors import SiteError
from tracer.storage import of_this_version, read_tensors, write_tensors

EdgeMetric = Literal["probability", "logit"]


def check_metric(metric: str) -> None:
    """Raises SiteError for a metric that edges are not scored by."""
    if metric not in get_args(EdgeMetric):
        raise SiteError(f'Edges have no metric {metric!r}. Write metric="probability" or metric="logit".')


@dataclass(frozen=True)
class Node:
    """What writes to the residual stream: the embedding, a head, an MLP. -1 where there is no layer or head."""

    kind: Literal["embedding", "head", "mlp"]
    layer: int = -1
    head: int = -1

    @property
    def place(self) -> int:
        """Nodes with a lower place than an input's are seen by it."""
        return 2 * self.layer + (self.kind == "mlp")

    def __str__(self) -> str:
        if self.kind == "embedding":
            return "embedding"
        return f"head[{self.layer}.{self.head}]" if self.kind == "head" else f"mlp[{self.layer}]"


@dataclass(frozen=True)
class Input:
    """What reads the residual stream: queries, keys or values of a head, an MLP, the logits (above the last layer)."""

    kind: Literal["q", "k", "v", "mlp", "logits"]
    layer: int
    head: int = -1

    @property
    def place(self) -> int:
        """Where the input lies in the order of the forward pass, comparable with `Node.place`."""
        return 2 * self.layer + (self.kind == "mlp")

    def __str__(self) -> str:
        if self.kind == "logits":
            return "logits"
        return f"mlp[{self.layer}]" if self.kind == "mlp" else f"{self.kind}[{self.layer}.{self.head}]"


@dataclass(frozen=True)
class Edge:
    """From what writes to what reads, directly."""

    source: Node
    target: Input

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """The edges of one fact.

    Attributes:
        sources, targets: in the order of `scores`' axes.
        scores: [source, target], differences of the metric, positive where restoring the edge brings the
            answer back; NaN where there is no edge.
        exact: the same by path patching, NaN where not computed.
        clean, corrupted: the metric in both runs, mean over draws.
        answer_id: the token that the metric is about.
        steps: of the integral.
        prompt: that they are about, as text.
    """

    sources: tuple[Node, ...]
    targets: tuple[Input, ...]
    scores: np.ndarray
    exact: np.ndarray
    clean: float
    corrupted: float
    answer_id: int
    metric: EdgeMetric
    steps: int
    settings: Settings
    prompt: str = ""

    def __repr__(self) -> str:
        n = int((~np.isnan(self.scores)).sum())
        return (
            f"EdgeScores({n} edges, {self.prompt!r}, {self.metric}: clean {self.clean:.3f}, "
            f"corrupted {self.corrupted:.3f})"
        )

    def top(self, k: int = 10) -> list[tuple[Edge, float]]:
        """The k edges with the largest |score|, largest first, with their scores."""
        if k < 1:
            raise SiteError(f"k={k} is no number of edges. Write k=10.")
        sizes = np.where(np.isnan(self.scores), -1.0, np.abs(self.scores))
        order = np.argsort(-sizes, axis=None, kind="stable")[: min(k, int((sizes >= 0).sum()))]
        places = [np.unravel_index(at, sizes.shape) for at in order]
        return [(Edge(self.sources[s], self.targets[t]), float(self.scores[s, t])) for s, t in places]

    def to_frame(self) -> pd.DataFrame:
        """One row an edge: source and target with their kinds, layers and heads, score, exact."""
        records = [
            {
                "source": str(source),
                "target": str(target),
                **{f"source_{name}": value for name, value in dataclasses.asdict(source).items()},
                **{f"target_{name}": value for name, value in dataclasses.asdict(target).items()},
                "score": self.scores[s, t],
                "exact": self.exact[s, t],
            }
            for s, source in enumerate(self.sources)
            for t, target in enumerate(self.targets)
            if source.place < target.place
        ]
        return pd.DataFrame.from_records(records)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically."""
        about = {name: getattr(self, name) for name in ("clean", "corrupted", "answer_id", "metric", "steps", "prompt")}
        about |= {
            "kind": "edges",
            "sources": [dataclasses.astuple(node) for node in self.sources],
            "targets": [dataclasses.astuple(node) for node in self.targets],
            "settings": dataclasses.asdict(self.settings),
        }
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in ("scores", "exact")}
        write_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> EdgeScores:
        """Reads what `save` wrote.

        Raises:
            FileFormatError: the file is missing, truncated or something else.
        """
        tensors, about = read_tensors(path, "edges")
        with of_this_version(path, "edges"):
            return cls(
                sources=tuple(Node(*node) for node in about["sources"]),
                targets=tuple(Input(*node) for node in about["targets"]),
                scores=tensors["scores"].numpy(),
                exact=tensors["exact"].numpy(),
                settings=Settings(**about["settings"]),
                prompt=about.get("prompt", ""),  # files of earlier versions name none
                **{name: about[name] for name in ("clean", "corrupted", "answer_id", "metric", "steps")},
            )
