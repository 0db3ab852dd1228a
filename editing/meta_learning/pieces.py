"""Each request's change of each matrix, and their sum as changes of an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from editing.change import LowRank
from editing.meta_learning.side_terms import SideTerm
from editing.request import EditRequest

Pieces = dict[str, tuple[Tensor, Tensor]]  # of one request, by weight name: out [m, rank], into [n, rank]


def pieces_of(terms: Mapping[str, SideTerm], row: int) -> Pieces:
    """One row's changes, float64 on the CPU, without what padding left: columns of zeros."""
    found = {}
    for weight, term in terms.items():
        out, into = (side[row].detach().double().cpu() for side in (term.out, term.into))
        kept = (out != 0).any(-1) & (into != 0).any(-1)
        found[weight] = (out[kept].T.contiguous(), into[kept].T.contiguous())
    return found


def changes(pieces: Sequence[Pieces]) -> tuple[LowRank, ...]:
    """One change a weight: the sum over requests."""
    found = []
    for weight in pieces[0] if pieces else ():
        out, into = (torch.cat([piece[weight][side] for piece in pieces], dim=1) for side in (0, 1))
        if into.shape[1] > len(into):  # more columns than inputs: the product itself is smaller
            out, into = out @ into.T, torch.eye(len(into), dtype=into.dtype)
        found.append(LowRank(weight, out, into))
    return tuple(found)


def request_records(requests: Sequence[EditRequest], pieces: Sequence[Pieces]) -> tuple[Mapping[str, Any], ...]:
    """Of each request: its words, and the norm of its change of all matrices together."""
    return tuple(
        {
            "subject": request.subject,
            "new": request.new,
            "update_norm": float(sum(_square_norm(*sides) for sides in piece.values())) ** 0.5,
        }
        for request, piece in zip(requests, pieces, strict=True)
    )


def _square_norm(out: Tensor, into: Tensor) -> Tensor:
    """|out into^T|^2, without the product."""
    return ((out.T @ out) * (into.T @ into)).sum()
