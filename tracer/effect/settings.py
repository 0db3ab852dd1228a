"""What a result says of how it was made, and how that is kept in files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tracer.fact import Fact, TokenizedFact
from tracer.metric import metric_named


@dataclass(frozen=True)
class Settings:
    """What a trace was run with; two results compare only where these agree.

    Attributes:
        window: layers restored together for `mlp` and `attn`.
        corruption: its name and settings, e.g. "GaussianNoise(scale=3.0, sigma=0.031)".
        fingerprint: of the model's weights.
        encoder_layers: how many of the layers are an encoder's; 0: there is none.
    """

    model: str
    fingerprint: str
    window: int
    samples: int
    seed: int
    corruption: str
    engine: str = "sweep"
    published_draws: bool = False
    metric: str = "probability"
    direction: str = "restore"
    whole_answer: bool = False
    encoder_layers: int = 0

    @property
    def sense(self) -> int:
        """1, or -1 for a metric that falls towards the clean answer; where a site carries it, sense * effect > 0."""
        return metric_named(self.metric).sense


def about_measured(result: Any) -> dict[str, Any]:
    """What every result for one fact says of itself, as JSON values: fact, answer, clean metric, settings."""
    plain = {name: getattr(result, name) for name in ("answer_id", "answer", "clean")}
    return {**plain, "fact": dataclasses.asdict(result.fact), "settings": dataclasses.asdict(result.settings)}


def measured_from(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that `about_measured` wrote, and the corrupted samples beside it."""
    return {
        **{name: about[name] for name in ("answer_id", "answer", "clean")},
        "fact": fact_from(about["fact"]),
        "corrupted_samples": tensors["corrupted_samples"].numpy(),
        "settings": Settings(**about["settings"]),
    }


def fact_from(about: dict[str, Any]) -> TokenizedFact:
    """A tokenized fact from its JSON, lists back to tuples."""
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in about.items()}
    if values.get("fact") is not None:
        values["fact"] = Fact(**about["fact"])
    return TokenizedFact(**values)
