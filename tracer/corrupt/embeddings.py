"""Token embeddings, and what corruptions measure on those of the subjects studied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tracer.errors import FactError
from tracer.fact import Fact
from tracer.facts import bundled
from tracer.model import LanguageModel


def embeddings(model: LanguageModel, ids: Int[Tensor, "*place"]) -> Float[Tensor, "*place width"]:
    """What the embedding module gives for token ids: float64 on the CPU."""
    return model.embedded(ids).cpu().double().clone()


def subject_embeddings(model: LanguageModel, subjects: Iterable[str]) -> Float[Tensor, "token width"]:
    """Embeddings of the subjects' tokens, without special tokens; float64."""
    if model.tokenizer is None:
        raise FactError("This model has no tokenizer, so sigma cannot be measured: give GaussianNoise(sigma=...).")
    ids = [token for s in subjects for token in model.tokenizer(s, add_special_tokens=False)["input_ids"]]
    if not ids:
        raise FactError("No subjects to measure the noise from. Give at least one fact.")
    return embeddings(model, torch.tensor(ids))


def embedding_sigma(model: LanguageModel, subjects: Iterable[str]) -> float:
    """Standard deviation of all embedding entries of the subjects' tokens, without special tokens.

    Source: Meng et al. 2022, appendix B.1 (there over the subjects of the facts traced).
    """
    return float(subject_embeddings(model, subjects).std())


def studied_subjects(facts: Sequence[Fact] | None) -> list[str]:
    """The subjects of these facts, or of the bundled ones."""
    return [fact.subject for fact in (bundled() if facts is None else facts)]


def tensor_digest(measured: Tensor | None) -> str | None:
    """The first twelve letters of the sha256 of a tensor's bytes, so that records tell two measurements apart."""
    return None if measured is None else sha256(measured.detach().double().cpu().numpy().tobytes()).hexdigest()[:12]
