"""Orthogonalisation by Triton kernels, for Hopper: float16 storage, float32 sums, symmetric products by half.

`Workspace` runs the shared order of products (`gram_form`) on the kernels of `products`, after the prologue of
`elementwise`. Needs the package triton; the rest of `muloco_runner` does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muloco_runner.muon_rule.polynomial import Polynomial
from muloco_runner.optimizers.arena import Arena
from muloco_runner.optimizers.orthogonalize.triton.device_tables import Addresses
from muloco_runner.optimizers.orthogonalize.triton.tiles import matrices_at_once
from muloco_runner.optimizers.orthogonalize.triton.workspace import Source, Workspace


def orthogonalize_triton(
    x_BRC: Tensor,
    polynomial: Polynomial,
    half: torch.dtype = torch.float16,
    dtype: torch.dtype | None = None,
    arena: Arena | None = None,
) -> Tensor:
    """As `orthogonalize_reference`, with products in `half` (float16 or bfloat16); returns `dtype`, by default x's."""
    x_BRC = x_BRC.contiguous()
    batch, rows, columns = x_BRC.shape
    at_once = min(batch, matrices_at_once(rows, columns))
    workspace = Workspace(at_once, rows, columns, half, x_BRC.device, arena)
    out_BRC = torch.empty_like(x_BRC, dtype=dtype)
    addresses = Addresses(at_once, x_BRC.device)
    with torch.cuda.device_of(x_BRC):  # Triton launches on the current device
        for part_BRC, result_BRC in zip(x_BRC.split(at_once), out_BRC.split(at_once), strict=True):
            workspace.batch = len(part_BRC)
            addresses.point_to(part_BRC.unbind())
            workspace.normalise(Source(addresses, x_BRC.dtype), polynomial)
            workspace.finish_to(result_BRC, workspace.run(polynomial.steps))
    return out_BRC
