"""Where a tensor lies: whole on this rank, or its rows spread over a mesh of ranks (a DTensor of FSDP2)."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor. None can exist before its module is loaded, which takes seconds: so it is not here."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What of it lies on this rank."""
    return tensor.to_local() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def as_dtensor_like(part: Tensor, like: Tensor) -> Tensor:
    """This rank's part as a DTensor placed as `like`."""
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def own_rows(whole: Tensor, rank: int, num_ranks: int) -> Tensor:
    """The rows of a whole parameter that lie on `rank` of `num_ranks`, a view: equal runs, the last ones shorter or
    empty."""
    size = -(-len(whole) // num_ranks)
    return whole[rank * size : (rank + 1) * size]


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what lies on this rank where it is placed as `like`: a view, so that nothing else is read."""
    if not is_distributed(like):
        return whole
    group = sharding_group(like)
    return own_rows(whole, group.rank(), group.size())


def copy_into(held: Tensor, value: Tensor) -> None:
    """The value of a saved state into the state held here; a whole tensor may go into a distributed one."""
    if is_distributed(held) and not is_distributed(value):
        # Every rank has loaded the same value: each keeps its own part of it, and none sends.
        local(held).copy_(own_part(value, held))
    else:
        held.copy_(value)


def sharding_group(parameter: Tensor) -> dist.ProcessGroup:
    """The ranks over which a DTensor's rows are spread. Other dimensions of its mesh must replicate it."""
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
    """Of what is kept for a parameter: float32, or wider where it is."""
    return torch.promote_types(parameter.dtype, torch.float32)
