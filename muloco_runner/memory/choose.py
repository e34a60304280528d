"""The placement of a run that fits the memory of its ranks; standard library only, as the estimate is."""

from __future__ import annotations

import dataclasses
import math

from muloco_runner.config import ExecutionConfig, ModelConfig, RunConfig
from muloco_runner.memory import Placement, estimate_memory, usable_bytes
from muloco_runner.model.logit_chunks import larger_chunks

_CPU_TOKENS = 8192
"""On a CPU larger micro-batches gain nothing."""
_GPU_TOKENS = 65536
"""On a GPU larger micro-batches gain nothing."""


def choose_placement(
    run: RunConfig, execution: ExecutionConfig, num_ranks: int, device: str, device_bytes: int | None
) -> Placement:
    """The first of copies, copies with recomputing, shards, shards with recomputing that fits, as far as `execution`
    leaves the choice; and the largest micro-batch that fits then, up to where larger ones gain nothing; and then, on a
    GPU, the largest chunks of logits.

    Where nothing fits, the leanest. `device_bytes` None sets no limit.
    """
    replicas = max(1, num_ranks // run.num_workers)
    limit = math.inf if device_bytes is None else usable_bytes(device_bytes)
    choices = {"none": [False], "full": [True], "auto": [False, True]}[execution.sharding]
    shardings = choices if replicas > 1 else [False]
    given = execution.activation_checkpointing
    # A model from outside keeps what it keeps.
    choices_here = [False, True] if isinstance(run.model, ModelConfig) else [False]
    recomputings = choices_here if given is None else [given]
    share = max(1, run.worker_batch_sequences // replicas)
    placements = [
        Placement(num_ranks, sharded, recompute, sequences, device, execution.sums_in_order(device))
        for sharded in shardings
        for recompute in recomputings
        for sequences in _micro_batches(execution, min(share, _enough(run, device)), share)
    ]
    fitting = (p for p in placements if estimate_memory(run, p).total <= limit)
    placement = next(fitting, placements[-1])
    halved = max(1, placement.micro_batch_sequences >> execution.memory_halvings)
    placement = dataclasses.replace(placement, micro_batch_sequences=halved)
    return placement if execution.memory_halvings else _with_largest_chunk(run, placement, limit)


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
