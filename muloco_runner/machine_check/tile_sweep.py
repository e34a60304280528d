"""Every tile of the products at the shapes of the study's models: is the one that the rule takes the fastest?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from muloco_runner.machine_check.findings import Findings
from muloco_runner.machine_check.timing import Machine
from muloco_runner.optimizers.orthogonalize import why_no_kernels

if TYPE_CHECKING:
    from muloco_runner.optimizers.orthogonalize.triton.tiles import Tile

_GPU_SHAPES = (
    (512, 512, 24), (512, 1408, 12), (512, 512, 3), (1024, 1024, 48), (1024, 1024, 14), (1024, 1024, 6),
    (1024, 2816, 24), (2560, 2560, 10), (2560, 7040, 10),
)  # fmt: skip
_MOST_OF_BEST = 1.15
"""Time by the rule over that of the fastest tile, summed over shapes, that is hoped for."""


def check(machine: Machine, findings: Findings) -> None:
    """Time each product with each of its tiles, some launches to a graph; a shape also with fewer matrices at once,
    which stay in the second-level cache."""
    if why := why_no_kernels(machine.device):
        findings.add("fused kernels", why, verdict="absent")
        return
    from muloco_runner.optimizers.orthogonalize.triton import tiles

    by_rule = of_best = 0.0
    for rows, columns, batch in _GPU_SHAPES if machine.is_gpu else ((64, 96, 1),):
        for kind, call, table, chosen in _products(machine, batch, rows, columns):
            times = {}
            known = getattr(tiles, table)
            for tile in known:
                setattr(tiles, table, (tile,))
                try:
                    times[tile] = machine.milliseconds(machine.graphed(call), 10 if machine.is_gpu else 1)
                finally:
                    setattr(tiles, table, known)
            best = min(times.values())
            by_rule += times[chosen]
            of_best += best
            each = ", ".join(f"{t.block_m} x {t.block_n} {1e3 * ms:.0f}" for t, ms in times.items())
            taken = f"{1e3 * best / batch:.2f} a matrix; the rule takes {chosen.block_m} x {chosen.block_n}"
            findings.add(f"{kind} {rows} x {columns}, {batch} at once", each, f"us; {taken}")
    if machine.is_gpu:
        ratio = by_rule / of_best
        findings.add(
            "the rule's tiles over the fastest, summed", ratio, verdict="meets" if ratio <= _MOST_OF_BEST else "misses",
            bar=f"hoped for {_MOST_OF_BEST} at most",
        )  # fmt: skip


def _products(
    machine: Machine, batch: int, rows: int, columns: int
) -> Iterator[tuple[str, Callable[[], None], str, Tile]]:
    """Each product of `batch` matrices: its name, some launches, the table of its tiles, and the rule's choice."""
    from muloco_runner.optimizers.orthogonalize.triton import tiles, waves
    from muloco_runner.optimizers.orthogonalize.triton.device_tables import Addresses
    from muloco_runner.optimizers.orthogonalize.triton.hyper import HyperParameters
    from muloco_runner.optimizers.orthogonalize.triton.workspace import Source, Workspace

    dtype, side, device = torch.float16, min(rows, columns), machine.device
    workspace = Workspace(batch, rows, columns, dtype, device)
    for buffer in (workspace.x, workspace.next_x, workspace.gram_MM, workspace.s_MM):
        buffer.normal_(0, 0.02)
    weights = torch.zeros(batch, rows, columns, device=device)
    addresses = Addresses(batch, device)
    addresses.point_to(weights.unbind())
    source = Source(addresses, weights.dtype, hyper=HyperParameters(device))

    def symmetric() -> None:
        for _ in range(5 if machine.is_gpu else 1):
            addends = (workspace.s_MM, 1.0), (workspace.gram_MM, 1.0)
            workspace._symmetric(workspace.next_MM, workspace.gram_MM, workspace.s_MM, 1.0, *addends)

    def product() -> None:
        for _ in range(2):
            workspace._advance(1.0)

    def into_weights() -> None:
        workspace.finish_into(addresses, weights.dtype, source, 1.0, 1.0)

    yield "symmetric", symmetric, "SYMMETRIC", waves.symmetric_tile(side, batch, side, dtype)
    yield "product", product, "PRODUCT", waves.product_tile(rows, columns, batch, dtype)
    of_weights = waves.product_tile(rows, columns, batch, dtype, tiles.INTO_PARAMETERS)
    yield "into weights", into_weights, "INTO_PARAMETERS", of_weights
