"""Which bucket updates which parameters: by what they have in common, and by where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor

from muloco_runner.distributed.collectives import Collectives
from muloco_runner.distributed.dtensor import is_distributed, sharding_group, state_dtype
from muloco_runner.distributed.ownership import OwnerAssignment
from muloco_runner.distributed.traffic import Traffic
from muloco_runner.muon_rule.matrix_view import MatrixView, matrix_view, splits_of
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


_LAYOUT_SETTINGS = ("algorithm", "backend", "split", "batched")
"""Settings of a group that decide which buckets it has."""


class GroupBuckets:
    """The buckets of one group, and what they were built of."""

    def __init__(self, group: dict[str, Any], context: BucketContext) -> None:
        self.parameters: list[Tensor] = list(group["params"])
        self.buckets = _create_buckets(group, context)
        self.state: dict[Tensor, dict[str, Tensor]] = {parameter: {} for parameter in self.parameters}
        """What this rank keeps for each parameter, by name: memory of the buckets and of what the optimizer adds."""
        for bucket in self.buckets:
            for index, parameter in enumerate(bucket.parameters):
                self.state[parameter] = bucket.state(index)
        self._settings = [copy(group[name]) for name in _LAYOUT_SETTINGS]
        self._kinds = [(p.dtype, p.device, p.shape) for p in self.parameters]

    def are_of(self, group: dict[str, Any]) -> bool:
        """Whether a group is still as it was: the same parameters, where they lay and in their dtype and shape."""
        parameters = group["params"]
        return (
            len(parameters) == len(self.parameters)
            and all(map(is_, parameters, self.parameters))
            and all(
                p.dtype is dtype and p.device == device and p.shape == shape
                for p, (dtype, device, shape) in zip(parameters, self._kinds, strict=True)
            )
            and [group.get(name) for name in _LAYOUT_SETTINGS] == self._settings
        )


def _create_buckets(group: dict[str, Any], context: BucketContext) -> list[Bucket]:
    """Return the buckets of a group, matrices with the most arithmetic first, as an even assignment wants."""
    if group["algorithm"] != "muon":
        by_kind: dict[tuple[Any, ...], list[Tensor]] = {}
        for parameter in group["params"]:
            by_kind.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        return [_adamw_bucket(parameters, group["backend"]) for parameters in by_kind.values()]
    by_cost = sorted(_by_view(group), key=lambda same: -min(same[0].rows, same[0].columns) * same[1][0].numel())
    unshared = [same for same in by_cost if context.replicas is None or _is_unshared(same[1][0])]
    _reserve_workspace([(view, same, len(same)) for view, same in unshared], group["backend"], context.arena)
    buckets = [_matrix_bucket(parameters, view, group["backend"], context) for view, parameters in unshared]
    if context.replicas is not None:
        replicated = [same for same in by_cost if not _is_unshared(same[1][0])]
        buckets += _replicated_buckets(replicated, group["backend"], context.replicas, context)
    return buckets


def _by_view(group: dict[str, Any]) -> list[tuple[MatrixView, list[Tensor]]]:
    """Return the parameters of a Muon group that one bucket may hold, and what matrices each is."""
    by_kind: dict[tuple[Any, ...], tuple[MatrixView, list[Tensor]]] = {}
    for parameter, split in zip(group["params"], splits_of(group), strict=True):
        view = matrix_view(parameter.shape, split, group["batched"])
        kind = (parameter.shape, parameter.dtype, parameter.device, view)
        by_kind.setdefault(kind, (view, []))[1].append(parameter)
    return list(by_kind.values())


def _is_unshared(parameter: Tensor) -> bool:
    """Whether replicas share no work on it: its rows are sharded, or it has no elements."""
    return is_distributed(parameter) or not parameter.numel()


def _adamw_bucket(parameters: list[Tensor], backend: str) -> Bucket:
    if _is_fused(parameters, backend):
        from muloco_runner.optimizers.buckets.fused import FusedAdamWBucket

        return FusedAdamWBucket(parameters)
    return AdamWBucket(parameters)


def _matrix_bucket(parameters: list[Tensor], view: MatrixView, backend: str, context: BucketContext) -> Bucket:
    if is_distributed(parameters[0]) and parameters[0].numel():
        shards = Collectives(sharding_group(parameters[0]), context.traffic)
        return ShardedBucket(parameters, view, backend, shards, context.assignment(shards.size), context.arena)
    return _whole_matrix_bucket(parameters, view, backend, range(len(parameters)), context.arena)


def _whole_matrix_bucket(
    parameters: list[Tensor], view: MatrixView, backend: str, owned: Sequence[int], arena: Arena
) -> MatrixBucket:
    """Return the bucket of matrices that are no rows of others, of which this rank works on `owned`."""
    if owned and _is_fused_matrix(parameters, view, backend):
        from muloco_runner.optimizers.buckets.fused import FusedMatrixBucket

        return FusedMatrixBucket(parameters, backend, arena, owned)
    return MatrixBucket(parameters, view, backend, owned, arena)


def _replicated_buckets(
    by_view: list[tuple[MatrixView, list[Tensor]]],
    backend: str,
    replicas: Collectives,
    context: BucketContext,
) -> list[Bucket]:
    """Return a bucket for each dtype of results: these go to other ranks together, whatever their shapes."""
    assignment = context.assignment(replicas.size)
    by_result: dict[tuple[torch.dtype, torch.device], list[tuple[MatrixView, list[Tensor]]]] = {}
    for view, same in by_view:
        device = same[0].device
        dtype = result_dtype(choose_backend(backend, device), view.rows, view.columns, state_dtype(same[0]))
        by_result.setdefault((dtype, device), []).append((view, same))
    buckets: list[Bucket] = []
    for (dtype, _), of_dtype in by_result.items():
        owners = [assignment.assign(len(same), view.rows, view.columns, view.blocks) for view, same in of_dtype]
        owned = [[index for index, owner in enumerate(of) if owner == replicas.rank] for of in owners]
        mine = list(zip(of_dtype, owned, strict=True))
        _reserve_workspace([(view, same, len(of)) for (view, same), of in mine], backend, context.arena)
        of_shapes = [_whole_matrix_bucket(same, view, backend, of, context.arena) for (view, same), of in mine]
        buckets.append(ReplicatedBucket(of_shapes, owners, replicas, dtype))
    return buckets


def _reserve_workspace(by_view: list[tuple[MatrixView, list[Tensor], int]], backend: str, arena: Arena) -> None:
    """Allocate what the largest fused bucket needs, so that all of them share one memory; numbers are of matrices that
    this rank works on."""
    fused = [(same, count) for view, same, count in by_view if count and _is_fused_matrix(same, view, backend)]
    if fused:
        from muloco_runner.optimizers.buckets.fused import needed_workspace

        most = max(needed_workspace(parameters, backend, count) for parameters, count in fused)
        arena.allocate(most, fused[0][0][0].device)


def _is_fused_matrix(parameters: list[Tensor], view: MatrixView, backend: str) -> bool:
    """Whether one fused kernel takes whole parameters as its matrices."""
    return (
        parameters[0].shape == (view.rows, view.columns)
        and bool(parameters[0].numel())
        and _is_fused(parameters, backend)
    )


def _is_fused(parameters: list[Tensor], backend: str) -> bool:
    if choose_backend(backend, parameters[0].device) not in TRITON_DTYPES or is_distributed(parameters[0]):
        return False
    # Needs the package triton, which other backends do without.
    from muloco_runner.optimizers.orthogonalize.triton.parameter_update import can_be_fused

    return can_be_fused(parameters)
