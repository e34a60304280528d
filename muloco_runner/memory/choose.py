"""The placement of a run that fits the memory of its ranks; standard library only, as the estimate is."""

from __future__ import annotations

import dataclasses
import math

from muloco_runner.config import ConfigError, ExecutionConfig, ModelConfig, RunConfig
from muloco_runner.memory import Placement, estimate_memory, usable_bytes
from muloco_runner.model.logit_chunks import larger_chunks

_CPU_TOKENS = 8192
"""On a CPU larger micro-batches gain nothing."""
_GPU_TOKENS = 65536
"""On a GPU larger micro-batches gain nothing."""


def choose_placement(
    run: RunConfig,
    execution: ExecutionConfig,
    num_ranks: int,
    device: str,
    device_bytes: int | None,
    ranks_per_node: int | None = None,
) -> Placement:
    """The first of copies, rows within a node and copies across nodes, rows over all ranks that fits, each without and
    then with recomputing, as far as `execution` leaves the choice; and the largest micro-batch that fits then, up to
    where larger ones gain nothing; and then, on a GPU, the largest chunks of logits.

    Where nothing fits, the leanest. `device_bytes` None sets no limit. Without `ranks_per_node`, where nodes are not
    known or differ, there are no copies across nodes. Those that are asked for and cannot be are a `ConfigError`.
    """
    replicas = max(1, num_ranks // run.num_workers)
    limit = math.inf if device_bytes is None else usable_bytes(device_bytes)
    shardings = _shardings(execution.sharding, replicas, ranks_per_node)
    given = execution.activation_checkpointing
    # A model from outside keeps what it keeps.
    choices_here = [False, True] if isinstance(run.model, ModelConfig) else [False]
    recomputings = choices_here if given is None else [given]
    share = max(1, run.worker_batch_sequences // replicas)
    placements = [
        Placement(num_ranks, sharded, copies, recompute, sequences, device, execution.sums_in_order(device))
        for sharded, copies in shardings
        for recompute in recomputings
        for sequences in _micro_batches(execution, min(share, _enough(run, device)), share)
    ]
    fitting = (p for p in placements if estimate_memory(run, p).total <= limit)
    placement = next(fitting, placements[-1])
    halved = max(1, placement.micro_batch_sequences >> execution.memory_halvings)
    placement = dataclasses.replace(placement, micro_batch_sequences=halved)
    return placement if execution.memory_halvings else _with_largest_chunk(run, placement, limit)


def copies_across_nodes(replicas: int, ranks_per_node: int | None) -> int | None:
    """How many groups of ranks, each a node's, share the rows of a worker of `replicas` ranks; 1 within one node; None
    where the ranks do not fill nodes, or have each a node of their own."""
    if ranks_per_node is None or ranks_per_node == 1:
        return None
    if ranks_per_node % replicas == 0:
        return 1
    return None if replicas % ranks_per_node else replicas // ranks_per_node


def _shardings(name: str, replicas: int, ranks_per_node: int | None) -> list[tuple[bool, int]]:
    """Whether rows are shared, and how many groups of ranks each hold all of them, in the order of preference."""
    if replicas == 1:
        return [(False, 1)]
    copies = copies_across_nodes(replicas, ranks_per_node)
    match name:
        case "none":
            return [(False, 1)]
        case "full":
            return [(True, 1)]
        case "hybrid":
            if copies is None:
                ranks = "an unknown number of ranks, or not each the same" if ranks_per_node is None else ranks_per_node
                raise ConfigError(
                    f"execution.sharding=hybrid: the {replicas} ranks of a worker must fill whole nodes of two or "
                    f"more, or lie in one; a node has {ranks}: use full, or another number of ranks"
                )
            return [(True, copies)]
        case "auto":
            across_nodes = [(True, copies)] if copies is not None and copies > 1 else []
            return [(False, 1), *across_nodes, (True, 1)]
        case _:
            raise AssertionError(name)


def _with_largest_chunk(run: RunConfig, placement: Placement, limit: float) -> Placement:
    """The same with as many logits at once as fit: each chunk reads and writes the head's whole gradient."""
    if not isinstance(run.model, ModelConfig):
        return placement
    tokens = placement.micro_batch_sequences * run.model.sequence_length
    sizes = larger_chunks(tokens, run.model.vocab_size, placement.device)
    larger = (dataclasses.replace(placement, most_chunk=most) for most in sizes)
    return next((p for p in larger if estimate_memory(run, p).total <= limit), placement)


def _enough(run: RunConfig, device: str) -> int:
    """Sequences in a micro-batch beyond which nothing is gained."""
    return max(1, (_CPU_TOKENS if device == "cpu" else _GPU_TOKENS) // run.model.sequence_length)


def _micro_batches(execution: ExecutionConfig, largest: int, share: int) -> list[int]:
    """Sizes to try: the one that was asked for, else `largest` and its halves."""
    if execution.micro_batch_sequences is not None:
        return [min(execution.micro_batch_sequences, share)]
    return [largest >> halvings for halvings in range(largest.bit_length())]
