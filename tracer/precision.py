"""In which precision losses, keys and softmaxes are computed: float32 at least, for 16 bits are too few."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(values: Tensor) -> Tensor:
    """In float32, or float64 where it is that."""
    return values if values.dtype == torch.float64 else values.float()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 where it is that."""
    return torch.float64 if dtype == torch.float64 else torch.float32
