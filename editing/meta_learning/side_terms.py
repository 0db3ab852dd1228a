"""An edited model without edited weights: each matrix adds a product of two thin ones, another for each row.

y' = W x + b + sum_r out_r (into_r . x)

So many edits run in one pass, each on its own row, and gradients reach the network that made them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from tracer.anatomy.hidden import by_token
from tracer.sweep.hooks import only_here


@dataclass(frozen=True, eq=False)
class SideTerm:
    """A change of one matrix for each row.

    Attributes:
        out: [row, rank, m].
        into: [row, rank, n].
    """

    out: Tensor
    into: Tensor

    def dense(self) -> Tensor:
        """The changes themselves, [row, m, n]."""
        return self.out.mT @ self.into


@contextmanager
def edited(matrices: Mapping[str, nn.Module], terms: Mapping[str, SideTerm]) -> Iterator[None]:
    """While the block runs, row b of every pass meets the matrices with its own changes."""

    def adds(term: SideTerm) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            given = by_token(arguments[0], len(term.out)).to(term.into)
            added = (given @ term.into.mT) @ term.out
            return output + added.reshape(output.shape).to(output)

        return hook

    with ExitStack() as hooks:
        for weight, term in terms.items():
            hooks.callback(matrices[weight].register_forward_hook(only_here(adds(term))).remove)
        yield
