"""Tensors in full on this rank, and those whose rows are sharded over a mesh of ranks (DTensors of FSDP2)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_distributed(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor. None can exist before their module is loaded, which takes seconds: not loaded here."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor; any other tensor as it is."""
    return tensor.to_local() if is_distributed(tensor) else tensor


def as_dtensor_like(part: Tensor, like: Tensor) -> Tensor:
    """Return the DTensor with the layout of `like` whose part on this rank is `part`."""
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def own_rows(full: Tensor, rank: int, num_ranks: int) -> Tensor:
    """Return the rows of a full parameter that `rank` of `num_ranks` holds, a view: as many on each rank, on the last
    ones fewer or none."""
    size = -(-len(full) // num_ranks)
    return full[rank * size : (rank + 1) * size]


def rows_of_ranks(num_rows: int, num_ranks: int) -> list[int]:
    """Return how many rows of a full parameter each rank holds."""
    rows = torch.empty(num_rows, device="meta")
    return [len(own_rows(rows, rank, num_ranks)) for rank in range(num_ranks)]


def own_part(full: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a full tensor in the layout of `like`: a view, so that nothing else is read."""
    if not is_distributed(like):
        return full
    group = sharding_group(like)
    return own_rows(full, group.rank(), group.size())


def copy_into(state: Tensor, value: Tensor) -> None:
    """Copy a saved value into a state tensor; a full value may go into a DTensor."""
    if is_distributed(state) and not is_distributed(value):
        # Every rank has loaded the same value: each keeps its own part of it, and none sends.
        local(state).copy_(own_part(value, state))
    else:
        state.copy_(value)


def sharding_group(parameter: Tensor) -> dist.ProcessGroup:
    """Return the ranks over which a DTensor's rows are sharded.

    Other dimensions of its mesh must replicate it: any other layout is a `ValueError`.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    assert isinstance(parameter, DTensor)
    placements = parameter.placements
    sharded = [axis for axis, placement in enumerate(placements) if placement == Shard(0)]
    if len(sharded) != 1 or any(not isinstance(p, Replicate) for p in placements if p != Shard(0)):
        raise ValueError(
            f"a parameter placed as {placements}: Muon takes rows sharded over one mesh dimension, as fully_shard does"
        )
    return parameter.device_mesh.get_group(sharded[0])


def state_dtype(parameter: Tensor) -> torch.dtype:
    """Return the dtype of a parameter's optimizer state: float32, or wider where the parameter is."""
    return torch.promote_types(parameter.dtype, torch.float32)
