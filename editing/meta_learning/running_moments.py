"""Mean and variance of all rows seen so far, exact however they were cut into batches (Chan et al. 1979).

n = n_A + n_B,  d = mean_B - mean_A
mean = mean_A + d n_B / n,   M2 = M2_A + M2_B + d^2 n_A n_B / n,   variance = M2 / (n - 1)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from editing.errors import RequestError

FLOOR = 1e-7  # added to the standard deviation


class RunningMoments(nn.Module):
    """Running statistics of vectors of one width, float64."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Takes in rows [row, width]."""
        if not len(values):
            return
        values = values.double()
        mean, total = values.mean(0), self.count + len(values)
        gap = mean - self.mean
        self.squares += (values - mean).square().sum(0) + gap.square() * (self.count * len(values) / total)
        self.mean += gap * (len(values) / total)
        self.count.copy_(total)

    @property
    def deviation(self) -> Tensor:
        """The unbiased standard deviation, [width].

        Raises:
            RequestError: fewer than two rows were seen.
        """
        if self.count < 2:
            raise RequestError("The network has seen fewer than two tokens and cannot normalise them. Train it first.")
        return (self.squares / (self.count - 1)).sqrt()

    def normalised(self, values: Tensor) -> Tensor:
        """(values - mean) / deviation, in the values' own type; 0 where no two rows have differed.

        Such an entry (of a neuron that was never on) has no scale: divided by `FLOOR` it would outweigh all others.
        """
        deviation = self.deviation.to(values)
        return ((values - self.mean.to(values)) / (deviation + FLOOR)).masked_fill(deviation == 0, 0)
