"""Which corruption: by the name that the command line takes, or the published one."""

from __future__ import annotations

from collections.abc import Sequence

from tracer.corrupt.ablation import MeanAblation, ResampleAblation, ZeroAblation
from tracer.corrupt.draws import Corruption
from tracer.corrupt.noise import GaussianNoise, StudentNoise, UniformNoise
from tracer.corrupt.replacement import ReplaceSubject
from tracer.errors import FactError
from tracer.fact import Fact
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


def corruption_of(corruption: Corruption | str | None) -> Corruption:
    """This corruption, the one of this name with its default settings, or normal noise of 3 sigma.

    Raises:
        FactError: there is none of that name, or it is something else.
    """
    if corruption is None:
        return GaussianNoise()
    if isinstance(corruption, Corruption):
        return corruption
    if isinstance(corruption, str) and corruption in CORRUPTIONS:
        return CORRUPTIONS[corruption]
    raise FactError(
        f"There is no corruption {corruption!r}. Choose from {', '.join(CORRUPTIONS)}, or write a value such as "
        f"tracer.corrupt.GaussianNoise(scale=3)."
    )


def measured_corruption(
    model: LanguageModel, corruption: Corruption | str | None, facts: Sequence[Fact] | None = None
) -> Corruption:
    """What `corruption_of` says, with what it needs measured over the facts studied, by default the bundled ones.

    Raises:
        FactError: as `corruption_of`, or a model without a tokenizer.
    """
    return corruption_of(corruption).measured(model, facts)
