"""Which bucket updates which parameters: by what they have in common, and by where they lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from muloco_runner.distributed.collectives import Collectives
from muloco_runner.distributed.dtensor import is_distributed, sharding_group, state_dtype
from muloco_runner.distributed.ownership import OwnerAssignment
from muloco_runner.distributed.traffic import Traffic
from muloco_runner.optimizers.arena import Arena
from muloco_runner.optimizers.buckets.adamw import AdamWBucket
from muloco_runner.optimizers.buckets.base import Bucket, MatrixBucket
from muloco_runner.optimizers.buckets.replicated import ReplicatedBucket
from muloco_runner.optimizers.buckets.sharded import ShardedBucket
from muloco_runner.optimizers.orthogonalize import TRITON_DTYPES, choose_backend, result_dtype


@dataclass
class BucketContext:
    """What the buckets of one optimizer share."""

    replicas: Collectives | None = None
    """The ranks that hold the same parameters, where several share the work."""
    traffic: Traffic = field(default_factory=Traffic)
    assignments: dict[int, OwnerAssignment] = field(default_factory=dict)
    """The assignment of matrices so far, by the number of ranks that share them."""
    arena: Arena = field(default_factory=Arena)
    """Memory of the fused buckets' workspaces."""

    def assignment(self, num_ranks: int) -> OwnerAssignment:
        """Return the assignment to that many ranks, to which new matrices are to be added."""
        return self.assignments.setdefault(num_ranks, OwnerAssignment(num_ranks))


def create_buckets(group: dict[str, Any], context: BucketContext) -> list[Bucket]:
    """Return the buckets of a group, matrices with the most arithmetic first, as an even assignment wants."""
    is_muon = group["algorithm"] == "muon"
    by_kind: dict[tuple[Any, ...], list[Tensor]] = {}
    for parameter in group["params"]:
        by_kind.setdefault((is_muon and parameter.shape, parameter.dtype, parameter.device), []).append(parameter)
    if not is_muon:
        return [_adamw_bucket(parameters, group["backend"]) for parameters in by_kind.values()]
    by_cost = sorted(by_kind.values(), key=lambda same: -min(same[0].shape) * same[0].numel())
    unshared = [same for same in by_cost if context.replicas is None or is_distributed(same[0])]
    _reserve_workspace(unshared, group["backend"], context.arena)
    buckets = [_matrix_bucket(parameters, group["backend"], context) for parameters in unshared]
    if context.replicas is not None:
        replicated = [same for same in by_cost if not is_distributed(same[0])]
        assignment = context.assignment(context.replicas.size)
        buckets += _replicated_buckets(replicated, group["backend"], context.replicas, assignment)
    return buckets


def _adamw_bucket(parameters: list[Tensor], backend: str) -> Bucket:
    if _is_fused(parameters, backend):
        from muloco_runner.optimizers.buckets.fused import FusedAdamWBucket

        return FusedAdamWBucket(parameters)
    return AdamWBucket(parameters)


def _matrix_bucket(parameters: list[Tensor], backend: str, context: BucketContext) -> Bucket:
    if is_distributed(parameters[0]):
        shards = Collectives(sharding_group(parameters[0]), context.traffic)
        return ShardedBucket(parameters, backend, shards, context.assignment(shards.size))
    if _is_fused(parameters, backend):
        from muloco_runner.optimizers.buckets.fused import FusedMatrixBucket

        return FusedMatrixBucket(parameters, backend, context.arena)
    return MatrixBucket(parameters, backend)


def _replicated_buckets(
    by_shape: list[list[Tensor]], backend: str, replicas: Collectives, assignment: OwnerAssignment
) -> list[Bucket]:
    """Return a bucket for each dtype of results: these go to other ranks together, whatever their shapes."""
    by_result: dict[tuple[torch.dtype, torch.device], list[list[Tensor]]] = {}
    for same in by_shape:
        (rows, columns), device = same[0].shape, same[0].device
        dtype = result_dtype(choose_backend(backend, device), rows, columns, state_dtype(same[0]))
        by_result.setdefault((dtype, device), []).append(same)
    return [ReplicatedBucket(same, backend, replicas, assignment, dtype) for (dtype, _), same in by_result.items()]


def _reserve_workspace(by_shape: list[list[Tensor]], backend: str, arena: Arena) -> None:
    """Allocate what the largest fused bucket needs, so that all of them share one memory."""
    fused = [parameters for parameters in by_shape if _is_fused(parameters, backend)]
    if fused:
        from muloco_runner.optimizers.buckets.fused import needed_workspace

        arena.allocate(max(needed_workspace(parameters, backend) for parameters in fused), fused[0][0].device)


def _is_fused(parameters: list[Tensor], backend: str) -> bool:
    if choose_backend(backend, parameters[0].device) not in TRITON_DTYPES or is_distributed(parameters[0]):
        return False
    # Needs the package triton, which other backends do without.
    from muloco_runner.optimizers.orthogonalize.triton.parameter_update import can_be_fused

    return can_be_fused(parameters)
