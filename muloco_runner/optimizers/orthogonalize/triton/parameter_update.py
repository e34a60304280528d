"""Muon's update applied to parameters by a Triton kernel of its own, for results that come from other ranks.

Where this rank computes a result itself, the last product's epilogue applies it: see `Workspace.finish_into`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from muloco_runner.optimizers.orthogonalize.triton import elementwise
from muloco_runner.optimizers.orthogonalize.triton.device_tables import Addresses
from muloco_runner.optimizers.orthogonalize.triton.workspace import TRITON_TYPES

UPDATE_BLOCK = 2048


def can_be_fused(parameters: Sequence[Tensor]) -> bool:
    """Whether the kernels know the dtype and layout of these parameters, and all share one dtype."""
    return all(p.dtype in TRITON_TYPES and p.is_contiguous() and p.dtype == parameters[0].dtype for p in parameters)


def apply_update(
    parameters: list[Tensor], orthogonal: list[Tensor], kept: float, scale: float, cautious: bool = False
) -> None:
    """W <- kept W - scale O for pairs of parameters W and updates O, all of one shape, in one pass over memory;
    `cautious` is of the decay, as in `update_rule.decay_`."""
    device, numel = parameters[0].device, parameters[0].numel()
    if numel == 0:
        return
    orthogonal = [o.contiguous() for o in orthogonal]
    parameter_addresses, update_addresses = (Addresses(len(parameters), device) for _ in range(2))
    parameter_addresses.point_to(parameters)
    update_addresses.point_to(orthogonal)
    with torch.cuda.device_of(parameters[0]):
        elementwise.update_parameters[(-(-numel // UPDATE_BLOCK), len(parameters))](
            update_addresses.values, parameter_addresses.values, kept, scale, numel,
            DTYPE=TRITON_TYPES[orthogonal[0].dtype], PARAMETER=TRITON_TYPES[parameters[0].dtype],
            ALIGNED=parameter_addresses.aligned and update_addresses.aligned, CAUTIOUS=cautious, BLOCK=UPDATE_BLOCK,
        )  # fmt: skip
