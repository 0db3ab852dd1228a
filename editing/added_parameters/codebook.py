"""A codebook: keys with a value, a radius and a label each, and the rule by which edits change it.

    i* = argmin_i |q - k_i|         the nearest key alone is asked
    |q - k_i*| <= eps_i*            it answers with v_i*; else nothing is changed

An edit (q, v, label) at distance d from the nearest key (Hartvigsen et al. 2022, arXiv:2211.11031, algorithm 1):
    added        there is no key, or d > eps_init + eps_i*     a new key of radius eps_init
    split        near, another label                           a new key of radius d/2; eps_i* = d/2 - 1e-5
    covered      near, the same label                          eps_i* = max(eps_i*, d); v_i* = v
    overwritten  d = 0, another label                          v_i* = v and its label: the later edit holds
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

Rule = Literal["added", "split", "covered", "overwritten"]
SAME = 1e-6  # distance below which a query is the key itself
GAP = 1e-5  # left between two radii that meet half-way


@dataclass(frozen=True, eq=False)
class Record:
    """What one edit asks of a codebook.

    Attributes:
        query: what enters the matrix where the prompt ends, [n_in].
        value: what should leave it, [n_out].
        label: token ids of the answer.
    """

    query: Tensor
    value: Tensor
    label: tuple[int, ...]


@dataclass(frozen=True)
class Placing:
    """Where a query falls: the rule that applies, the nearest key and how far it is (None, None without keys)."""

    rule: Rule
    nearest: int | None
    distance: float | None


@dataclass(frozen=True, eq=False)
class Codebook:
    """Keys and what they answer; a value: an edit gives another codebook.

    Attributes:
        radius: eps_init, of a new key.
        rounding: by how much equal queries may differ between two passes, as a share of the key's norm.
        keys: [key, n_in], float64.
        values: [key, n_out].
        radii: [key], float64.
        labels: token ids, one tuple a key.
    """

    radius: float
    rounding: float
    keys: Tensor
    values: Tensor
    radii: Tensor
    labels: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, records: Iterable[Record], radius: float, rounding: float = 0.0) -> Self:
        """The codebook that these edits give, one after the other."""
        empty = torch.empty(0, 0)
        book = cls(radius, rounding, empty.double(), empty, torch.empty(0, dtype=torch.float64), ())
        for record in records:
            book = book.after(record)
        return book

    def __len__(self) -> int:
        return len(self.labels)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest key of each query [row, n_in], and its distance, both [row]; there must be a key."""
        # By differences: through a product of matrices small distances between large keys are lost.
        apart = torch.cdist(queries.to(self.keys), self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        distance, index = apart.min(dim=1)
        return index, distance

    def answering(self, queries: Tensor) -> Tensor:
        """Which key answers each query [row, n_in]; -1: none does. [row]."""
        if not len(self):
            return torch.full((len(queries),), -1, device=queries.device)
        index, distance = self.nearest(queries)
        reach = self.radii[index] + self._slack(index)
        return torch.where(distance <= reach, index, -1)

    def placing(self, query: Tensor, label: tuple[int, ...]) -> Placing:
        """The rule that applies to an edit of this query [n_in]."""
        if not len(self):
            return Placing("added", None, None)
        index, distance = self.nearest(query[None])
        near, apart = int(index), float(distance)
        if apart > self.radius + float(self.radii[near]):
            return Placing("added", near, apart)
        if label == self.labels[near]:
            return Placing("covered", near, apart)
        same = apart <= max(SAME, float(self._slack(index)))
        return Placing("overwritten" if same else "split", near, apart)

    def written(self, placing: Placing) -> int:
        """The key that an edit placed so writes, whether it is there or will be the next one."""
        if placing.rule in ("covered", "overwritten") and placing.nearest is not None:
            return placing.nearest
        return len(self)

    def after(self, record: Record) -> Self:
        """The codebook once this edit is made."""
        placing = self.placing(record.query, record.label)
        near, apart = placing.nearest, placing.distance
        if placing.rule == "added" or near is None or apart is None:
            return self._with_key(record, self.radius)
        if placing.rule == "split":
            smaller = max(apart / 2 - GAP, 0.0)  # a key never loses its own query
            return self._with_radius(near, smaller)._with_key(record, apart / 2)
        changed = (
            self if placing.rule == "overwritten" else self._with_radius(near, max(apart, float(self.radii[near])))
        )
        values = changed.values.clone()
        values[near] = record.value.to(values)
        labels = (*changed.labels[:near], record.label, *changed.labels[near + 1 :])
        return dataclasses.replace(changed, values=values, labels=labels)

    def _slack(self, index: Tensor) -> Tensor:
        return self.rounding * self.keys[index].norm(dim=-1)

    def _with_key(self, record: Record, radius: float) -> Self:
        key, value = record.query.double()[None], record.value[None]
        if len(self):  # which may be on another device
            key, value = key.to(self.keys), value.to(self.values)
        return dataclasses.replace(
            self,
            keys=torch.cat((self.keys, key)) if len(self) else key,
            values=torch.cat((self.values, value)) if len(self) else value,
            radii=torch.cat((self.radii.to(key), key.new_tensor([radius]))),
            labels=(*self.labels, record.label),
        )

    def _with_radius(self, index: int, radius: float) -> Self:
        radii = self.radii.clone()
        radii[index] = radius
        return dataclasses.replace(self, radii=radii)
