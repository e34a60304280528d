"""`muloco-train --estimate`: what a run takes of each GPU's memory, on any number of GPUs; loads no torch."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.memory import Placement, estimate_memory, usable_bytes
from muloco_runner.memory.choose import choose_placement

H100_BYTES = 80 * 10**9
GPUS_PER_NODE = 8
"""Of the nodes that a table stands for."""
_MOST_RANKS = 512


def placements_of(run: RunConfig, execution: ExecutionConfig, device_bytes: int) -> list[Placement]:
    """The chosen placement for each number of GPUs, in powers of two, that K workers and their batch can share."""
    found = []
    num_ranks = 1
    while num_ranks <= _MOST_RANKS:
        even = num_ranks % run.num_workers == 0 or run.num_workers % num_ranks == 0
        if even and run.worker_batch_sequences % max(1, num_ranks // run.num_workers) == 0:
            per_node = min(num_ranks, GPUS_PER_NODE)
            found.append(choose_placement(run, execution, num_ranks, "cuda", device_bytes, per_node))
        num_ranks *= 2
    return found


def show_estimate(run: RunConfig, execution: ExecutionConfig, device_bytes: int = H100_BYTES) -> None:
    """Prints a table, one row a number of GPUs."""
    placements = placements_of(run, execution, device_bytes)
    if not placements:
        raise ConfigError(f"no power of two of GPUs shares {run.num_workers} workers evenly: change method.num_workers")
    gigabytes = device_bytes / 1e9
    where = f"GB on each GPU of {gigabytes:.0f} GB, {GPUS_PER_NODE} to a node"
    title = f"{run.algorithm}, {run.num_params:,} parameters, {run.precision}: {where}"
    table = Table(title=title)
    columns = ["GPUs", "holds", "micro-batch", "weights", "inner", "outer", "step", "peak phase", "all", "fits"]
    for name in columns:
        text = name in ("holds", "peak phase", "fits")
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    for placement in placements:
        estimate = estimate_memory(run, placement)
        parts = (estimate.parameters, estimate.inner_optimizer, estimate.method, estimate.step)
        table.add_row(
            str(placement.num_ranks),
            placement.describe(run),
            str(placement.micro_batch_sequences),
            *(f"{part / 1e9:.1f}" for part in parts),
            estimate.peak_phase,
            f"{estimate.total / 1e9:.1f}",
            "yes" if estimate.total <= usable_bytes(device_bytes) else "no",
        )
    console = Console(width=120)
    console.print(table)
    most = run.num_workers * run.worker_batch_sequences
    if most < _MOST_RANKS:
        console.print(
            f"GPUs at most: {most}, one for each sequence of global_batch_tokens={run.global_batch_tokens}; "
            "raise that for more.",
            highlight=False,
        )
