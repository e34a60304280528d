"""Muon on parameters whose rows are sharded over ranks (FSDP2's `fully_shard`): full matrices are orthogonalised.

Momentum is kept like its parameter, by rows. A step brings each matrix's update to its owner (an all-to-all), which
orthogonalises it once, and sends every rank its rows back in the precision in which the backend computes, while the
next matrices are worked on.

Axes: P ranks, T owners in a round, S matrices of one owner in it, R rows, C columns. Of a parameter of more than two
dimensions R is the first and C all others.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor

from muloco_runner.distributed.collectives import Collectives
from muloco_runner.distributed.dtensor import as_dtensor_like, rows_of_ranks
from muloco_runner.distributed.ownership import OwnerAssignment, rounds_of
from muloco_runner.distributed.pending import PendingTransfers
from muloco_runner.distributed.row_shards import FullTensors
from muloco_runner.muon_rule.matrix_view import MatrixView
from muloco_runner.optimizers.arena import Arena
from muloco_runner.optimizers.buckets.base import MatrixBucket
from muloco_runner.optimizers.orthogonalize import result_dtype


class ShardedBucket(MatrixBucket):
    """DTensors of one shape and mesh, whose rows are sharded over the ranks of `shards`."""

    def __init__(
        self,
        parameters: list[Tensor],
        view: MatrixView,
        backend: str,
        shards: Collectives,
        assignment: OwnerAssignment,
        arena: Arena,
    ) -> None:
        super().__init__(parameters, view, backend, arena=arena)
        owners = assignment.assign(len(parameters), self.rows, self.columns, self.blocks)
        rows_P = rows_of_ranks(self.shape[0], shards.size)
        self.rounds: list[tuple[dict[int, list[int]], FullTensors]] = []
        """In each some matrices of each owner, stacked (S, R, C)."""
        for of_rank in rounds_of(owners, shards.size, self.parameters_at_once):
            of_owner = {owner: indices for owner, indices in enumerate(of_rank) if indices}
            shapes = [(len(indices), *self.shape) for indices in of_owner.values()]
            rows_PT = [[rows] * len(shapes) for rows in rows_P]
            self.rounds.append((of_owner, FullTensors(shapes, rows_PT, list(of_owner), shards, row_axis=1)))

    def state(self, index: int) -> dict[str, Tensor]:
        return {"momentum": as_dtensor_like(self.momentum(index), self.parameters[index])}

    def step(self, group: dict[str, Any], pending: PendingTransfers) -> None:
        updated = self._accumulate(group, self.position)
        dtype = result_dtype(self.backend, self.rows, self.columns, self.dtype)
        for of_owner, stacks in self.rounds:
            full = stacks.gather([self._raw_updates(group, indices) for indices in of_owner.values()])
            orthogonal = [self._orthogonalized(group, full_SRC, dtype) for full_SRC in full]
            transfer, rows = stacks.begin_scatter(orthogonal, like=self.momentum_BRC.new_empty(0, dtype=dtype))
            received = dict(zip(chain.from_iterable(of_owner.values()), chain.from_iterable(rows), strict=True))
            chosen = [index for index in updated if index in received]
            pending.add_round((transfer, partial(self._apply, group, chosen, received)))
        self._accumulated = {}

    def _apply(self, group: dict[str, Any], indices: list[int], received: dict[int, Tensor]) -> None:
        self.apply_update(group, indices, [received[index] for index in indices])
