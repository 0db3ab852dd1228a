"""A model whose large matrices are cut over several processes: what of them is here, and what they are whole."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_sharded(module: nn.Module) -> bool:
    """Whether this process holds only slices of some of the module's weights."""
    return any(isinstance(weight, DTensor) for weight in module.parameters())


def whole(weight: Tensor) -> Tensor:
    """The weight put together from its slices; every process must ask for it."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def slice_here(weight: Tensor) -> Tensor:
    """What this process holds of a weight."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def first_column(matrix: nn.Module) -> int:
    """Where the part of a matrix's input that this process is given begins in the whole input."""
    weight = matrix.get_parameter("weight")
    if not isinstance(weight, DTensor) or not weight.placements[0].is_shard(1):
        return 0
    return weight.device_mesh.get_local_rank() * weight.to_local().shape[1]
