"""One block in a watched pass: which of its modules adds what to the residual stream.

Some pass on their input and what attention and MLP add, each times a constant (1, but for Granite),
    output = input + a A + m M,
others normalise after each sum (OPT-350m, BERT),
    output = N2(N1(input + A) + M).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tracer.anatomy.watch import Watched

_SMALLEST_FACTOR = 1e-3  # a site whose share is below adds nothing: the other one is more than a site


class Block:
    """One block: its modules by their path inside it.

    Attributes:
        attention: the module that stores keys and values; None if none does.
    """

    def __init__(self, model: PreTrainedModel, watched: Watched, path: str) -> None:
        self.path, self.watched, self.module = path, watched, model.get_submodule(path)
        inside = [path for path in sorted(watched.caches) if path.startswith(f"{self.path}.")]
        self.attention = inside[0].removeprefix(f"{self.path}.") if inside else None

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Pairs (attention site, MLP site): their outputs add up to what the block adds to its input."""
        watched, before = self.watched, self.watched.inputs[self.path]
        after = watched.outputs[self.path]
        names = [
            name
            for name, module in self.module.named_modules()
            if watched.once(self.full(name)) and not isinstance(module, nn.Dropout | nn.Identity)
        ]
        added = {name: watched.outputs[self.full(name)] for name in names if name}
        added = {name: one for name, one in added.items() if one.shape == before.shape and one.any()}
        for one, other in combinations(added, 2):
            if _is_sum(after, before, added[one], added[other]):
                yield (one, other) if self.is_attention(one, other) else (other, one)

    def passes_on(self, attention_site: str, mlp_site: str) -> bool:
        """Whether the block's output is its input and what these two add, scaled or normalised as it may be."""
        before, after = self.watched.inputs[self.path], self.watched.outputs[self.path]
        attention, mlp = (self.watched.outputs[self.full(site)] for site in (attention_site, mlp_site))
        if {attention.shape, mlp.shape, after.shape} != {before.shape}:
            return False
        added = torch.stack((attention.flatten(), mlp.flatten()), dim=1).double()
        factors = torch.linalg.lstsq(added, (after.double() - before.double()).flatten()[:, None]).solution[:, 0]
        scaled = [(factor * part.double()).to(part) for factor, part in zip(factors, (attention, mlp), strict=True)]
        if factors.abs().min() > _SMALLEST_FACTOR and _is_sum(after, before, *scaled):
            return True
        with_attention = [start + attention for start in self._normed([before])]
        ends = self._normed([middle + mlp for middle in self._normed(with_attention)])
        return any(_is_sum(after, end) for end in ends)

    def _normed(self, values: list[Tensor]) -> list[Tensor]:
        """These, and what modules inside the block made of them."""
        inputs, outputs = self.watched.inputs, self.watched.outputs
        inside = [
            self.full(name) for name, _ in self.module.named_modules() if name and self.watched.once(self.full(name))
        ]
        made = [
            outputs[path]
            for path in inside
            if path in inputs and any(one.shape == inputs[path].shape and _is_sum(inputs[path], one) for one in values)
        ]
        return values + [one for one in made if one.shape == values[0].shape]

    def leads_to(self, name: str, site: str) -> bool:
        """Whether what the module returns is what the site returns, or the norm that is the site takes."""
        stores = (self.watched.outputs, self.watched.inputs)
        wanted = [store[self.full(site)] for store in stores if self.full(site) in store]
        return self.watched.once(self.full(name)) and any(
            torch.equal(self.watched.outputs[self.full(name)], one) for one in wanted
        )

    def is_attention(self, one: str, other: str) -> bool:
        """Whether `one`, rather than `other`, is what the attention adds."""
        first, second = self.in_attention(one), self.in_attention(other)
        if first != second:
            return first
        return self.watched.ended[self.full(one)] < self.watched.ended[self.full(other)]

    def in_attention(self, name: str) -> bool:
        """Whether the module stands in the same part of the block as the one that stores keys and values."""
        return name.split(".")[0] == str(self.attention).split(".")[0]

    def value_matrix(self, mlp_site: str) -> str | None:
        """The matrix whose output is the MLP site's, or goes into the norm that is the site; None if none is."""
        found = [
            name
            for name, module in self.module.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and not self.in_attention(name) and self.leads_to(name, mlp_site)
        ]
        return found[-1] if found else None

    def full(self, name: str) -> str:
        """The path from the model of a module inside this block."""
        return f"{self.path}.{name}" if name else self.path


def _is_sum(whole: Tensor, *parts: Tensor) -> bool:
    """Whether the parts add up to the whole, but for rounding."""
    rounding = 8 * torch.finfo(whole.dtype).eps * sum(part.abs() for part in (*parts, whole))
    return bool(((whole - sum(parts)).abs() <= rounding).all())
