"""Every tile of the products at the shapes of the study's models: is the one that the rule takes the fastest?"""

from __future__ import annotations

import torch

from muloco_runner.machine_check.findings import Findings
from muloco_runner.machine_check.timing import Machine
from muloco_runner.optimizers.orthogonalize import why_no_kernels

_GPU_SHAPES = (
    (512, 512, 24), (512, 1408, 12), (512, 512, 3), (1024, 1024, 48), (1024, 1024, 14), (1024, 1024, 6),
    (1024, 2816, 24), (2560, 2560, 10), (2560, 7040, 10),
)  # fmt: skip
_MOST_OF_BEST = 1.15
"""Time by the rule over that of the fastest tile, summed over shapes, that is hoped for."""


def check(machine: Machine, findings: Findings) -> None:
    """Time `symmetric_product` and `product` with each tile, five or two launches to a graph."""
    if machine.is_gpu and (why := why_no_kernels(machine.device)):
        findings.add("fused kernels", why, verdict="absent")
        return
    from muloco_runner.optimizers.orthogonalize.triton import tiles
    from muloco_runner.optimizers.orthogonalize.triton.workspace import Workspace

    by_rule = of_best = 0.0
    dtype = torch.float16
    for rows, columns, batch in _GPU_SHAPES if machine.is_gpu else ((64, 96, 1),):
        workspace = Workspace(batch, rows, columns, dtype, machine.device)
        for buffer in (workspace.x, workspace.next_x, workspace.gram_MM, workspace.s_MM):
            buffer.normal_(0, 0.02)

        def symmetric(w: Workspace = workspace) -> None:
            for _ in range(5 if machine.is_gpu else 1):
                w._symmetric(w.next_MM, w.gram_MM, w.s_MM, 1.0, (w.s_MM, 1.0), (w.gram_MM, 1.0))

        def product(w: Workspace = workspace) -> None:
            for _ in range(2):
                w._advance(1.0)

        kinds = (
            ("symmetric", symmetric, "SYMMETRIC", tiles.symmetric_tile(min(rows, columns), batch, dtype)),
            ("product", product, "PRODUCT", tiles.product_tile(rows, columns, batch, dtype)),
        )
        for kind, call, table, chosen in kinds:
            times = {}
            known = getattr(tiles, table)
            for tile in known:
                setattr(tiles, table, (tile,))
                try:
                    times[tile] = machine.milliseconds(machine.graphed(call), 10 if machine.is_gpu else 1)
                finally:
                    setattr(tiles, table, known)
            best = min(times, key=lambda tile: times[tile])
            by_rule += times[chosen]
            of_best += times[best]
            each = ", ".join(f"{t.block_m} x {t.block_n} {1e3 * ms:.0f}" for t, ms in times.items())
            taken = f"the rule takes {chosen.block_m} x {chosen.block_n}"
            findings.add(f"{kind} {rows} x {columns}, {batch} at once", each, f"us; {taken}")
    if machine.is_gpu:
        ratio = by_rule / of_best
        findings.add(
            "the rule's tiles over the fastest, summed", ratio, verdict="meets" if ratio <= _MOST_OF_BEST else "misses",
            bar=f"hoped for {_MOST_OF_BEST} at most",
        )  # fmt: skip
