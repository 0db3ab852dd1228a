"""MEND's network: a shared residual MLP of low rank that turns one token's (x, delta) into better ones.

z = [norm(x); norm(delta)]                                  running statistics
h = z + max(0, s1 (U1 V1 z + b1) + o1)
g = h + max(0, s2 (U2 V2 h + b2) + o2)                      U = 0, b = 0, s = 1, o = 0 at first, so that g = z
D_W = -a_W sum_t delta~_t x~_t^T,                           [x~; delta~] = g

Matrices of one size share U, V, b and the statistics; s and o are each matrix's own (Mitchell et al. 2022,
arXiv:2110.11309, sec. 3). The sign is the paper's: the released code adds a_W times the product instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from editing.meta_learning.factors import Factors
from editing.meta_learning.hypernetwork import Asked, Hypernetwork
from editing.meta_learning.matrices import Sizes
from editing.meta_learning.running_moments import RunningMoments
from editing.meta_learning.side_terms import SideTerm
from tracer.model import LanguageModel


class ResidualLayer(nn.Module):
    """v + max(0, s (U V v + b) + o), with s and o of each matrix."""

    def __init__(self, width: int, rank: int, n_matrices: int, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.narrow = nn.Parameter(torch.randn(rank, width, generator=generator, dtype=dtype))  # V
        self.widen = nn.Parameter(torch.zeros(width, rank, dtype=dtype))  # U
        self.bias = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.scale = nn.Parameter(torch.ones(n_matrices, width, dtype=dtype))
        self.shift = nn.Parameter(torch.zeros(n_matrices, width, dtype=dtype))

    def forward(self, values: Tensor, number: int) -> Tensor:
        """Rows [row, width] of matrix `number`."""
        mixed = values @ self.narrow.T @ self.widen.T + self.bias
        # clamp's gradient at exactly 0, where all begins, is 1; relu's is 0 and nothing would ever be learned.
        return values + (self.scale[number] * mixed + self.shift[number]).clamp(min=0)


class FactorTransform(nn.Module):
    """The two layers, and the statistics, of all matrices of one size."""

    def __init__(
        self, size: tuple[int, int], rank: int, n_matrices: int, generator: torch.Generator, dtype: torch.dtype
    ) -> None:
        super().__init__()
        width, self.size = sum(size), size
        rank = min(rank, width)
        self.inputs, self.deltas = (RunningMoments(each) for each in size)
        self.layers = nn.ModuleList(ResidualLayer(width, rank, n_matrices, generator, dtype) for _ in range(2))

    def see(self, inputs: Tensor, deltas: Tensor) -> None:
        """Takes x and delta of some tokens into the statistics, [row, n] and [row, m].

        A token with a number that is not finite is left out: its pass is skipped, but statistics are never forgotten.
        """
        finite = torch.isfinite(inputs).all(-1) & torch.isfinite(deltas).all(-1)
        self.inputs.update(inputs[finite])
        self.deltas.update(deltas[finite])

    def forward(self, inputs: Tensor, deltas: Tensor, number: int, normalise: bool) -> Sequence[Tensor]:
        """What x and delta of some tokens should have been, [row, n] and [row, m]."""
        if normalise:
            inputs, deltas = self.inputs.normalised(inputs), self.deltas.normalised(deltas)
        values = torch.cat((inputs, deltas), dim=-1)
        for layer in self.layers:
            values = layer(values, number)
        return values.split(self.size, dim=-1)


class MendNetwork(Hypernetwork):
    """All of it, for the matrices of one model.

    Args:
        sizes: of the matrices, by weight name.
        rank: of U V, at most n + m.
        step: a_W at first.
        normalise: subtract the mean and divide by the deviation of the factors.
        dtype: of the network.
        seed: of V.
    """

    def __init__(self, sizes: Sizes, *, rank: int, step: float, normalise: bool, dtype: torch.dtype, seed: int) -> None:
        super().__init__(sizes)
        generator, self.normalise = torch.Generator().manual_seed(seed), normalise
        groups: dict[tuple[int, int], list[str]] = {}
        for weight, size in sizes.items():
            groups.setdefault(size, []).append(weight)
        self.groups = groups
        self.transforms = nn.ModuleList(
            FactorTransform(size, rank, len(group), generator, dtype) for size, group in groups.items()
        )
        self.steps = nn.Parameter(torch.full((len(sizes),), step, dtype=dtype))  # a_W

    def terms(
        self, model: LanguageModel, factors: Mapping[str, Factors], asked: Sequence[Asked]
    ) -> dict[str, SideTerm]:
        """The changes; in training mode the factors enter the statistics first."""
        found = {}
        for transform, group in zip(self.transforms, self.groups.values(), strict=True):
            assert isinstance(transform, FactorTransform)
            rows = [(each.inputs[each.kept], each.deltas[each.kept]) for each in map(factors.__getitem__, group)]
            if self.training and self.normalise:
                transform.see(*(torch.cat(parts) for parts in zip(*rows, strict=True)))
            for number, (weight, parts) in enumerate(zip(group, rows, strict=True)):
                into, out = transform(*parts, number, self.normalise)
                found[weight] = (factors[weight], into, out)
        return {weight: self._term(number, *found[weight]) for number, weight in enumerate(self.sizes)}

    def _term(self, number: int, factors: Factors, into: Tensor, out: Tensor) -> SideTerm:
        """Back to [row, token, width], zero where a token was dropped."""
        out = -self.steps[number] * out
        empty = (torch.zeros_like(factors.deltas), torch.zeros_like(factors.inputs))
        return SideTerm(
            *(side.index_put((factors.kept,), values) for side, values in zip(empty, (out, into), strict=True))
        )
