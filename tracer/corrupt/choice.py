"""Which corruption: by the name that the command line takes, or the published one."""

from __future__ import annotations

from collections.abc import Sequence

from tracer.corrupt.ablation import MeanAblation, ResampleAblation, ZeroAblation
from tracer.corrupt.draws import Corruption
from tracer.corrupt.noise import GaussianNoise, StudentNoise, UniformNoise
from tracer.corrupt.replacement import ReplaceSubject
from tracer.model import LanguageModel

CORRUPTIONS: dict[str, Corruption] = {
    "gaussian": GaussianNoise(),
    "full": GaussianNoise(full=True),
    "uniform": UniformNoise(),
    "student": StudentNoise(),
    "replace": ReplaceSubject(),
    "resample": ResampleAblation(),
    "mean": MeanAblation(),
    "zero": ZeroAblation(),
}


def measured_corruption(
    model: LanguageModel, corruption: Corruption | None, subjects: Sequence[str] | None = None
) -> Corruption:
    """`corruption`, by default normal noise of 3 sigma, with what it needs measured over `subjects`.

    Those default to the subjects of the bundled facts.
    """
    return (corruption or GaussianNoise()).measured(model, subjects)
