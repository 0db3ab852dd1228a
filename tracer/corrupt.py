"""Corruption of the subject: Gaussian noise on its token embeddings (Meng et al. 2022, sec. 2.1).

    h*[0][i] = h[0][i] + eps,   eps ~ N(0, (scale * sigma)^2),   i in the subject
sigma is the standard deviation of the embeddings of the subjects studied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tracer.errors import FactError
from tracer.model import LanguageModel


@dataclass(frozen=True)
class GaussianNoise:
    """Noise of standard deviation `scale * sigma` in every coordinate of every subject token.

    Attributes:
        scale: in units of sigma; the paper uses 3.
        sigma: standard deviation of the subjects' embeddings; None measures it (`embedding_sigma`).
    """

    scale: float = 3.0
    sigma: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("scale", self.scale), ("sigma", self.sigma)):
            if value is not None and not 0 <= value < float("inf"):
                raise FactError(f"{name}={value} is no noise. Write a number that is not negative.")

    def draws(self, *, samples: int, n_subject: int, d_model: int, seed: int) -> Tensor:
        """The noise itself, float64 [sample, subject, d_model], the same on every device.

        `d_model` is the width of the embedding, `anatomy.embedding_size`: OPT-350m's is not the residual stream's.

        Source: the published tracer's numpy.random.RandomState(1).randn(...).
        """
        if self.sigma is None:
            raise FactError(
                "GaussianNoise has no sigma yet: write GaussianNoise(sigma=embedding_sigma(model, subjects))."
            )
        normal = np.random.RandomState(seed).randn(samples, n_subject, d_model)
        return torch.from_numpy(self.scale * self.sigma * normal)


def embedding_sigma(model: LanguageModel, subjects: Iterable[str]) -> float:
    """Standard deviation of all embedding entries of the subjects' tokens, without special tokens.

    Source: Meng et al. 2022, appendix B.1 (there over the subjects of the facts traced).
    """
    if model.tokenizer is None:
        raise FactError("This model has no tokenizer, so sigma cannot be measured: give GaussianNoise(sigma=...).")
    ids = [token for s in subjects for token in model.tokenizer(s, add_special_tokens=False)["input_ids"]]
    if not ids:
        raise FactError("No subjects to measure the noise from. Give at least one fact.")
    with torch.inference_mode():
        rows = model.anatomy.embedding(torch.tensor(ids, device=model.device))
    return float(rows.double().std())
