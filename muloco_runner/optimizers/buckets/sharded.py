"""Muon on parameters whose rows are sharded over ranks (FSDP2's `fully_shard`): full matrices are orthogonalised.

Momentum is kept like its parameter, by rows. A step brings each matrix's update to its owner (an all-to-all), which
orthogonalises it once, and sends every rank its rows back in the precision in which the backend computes, while the
next matrices are worked on.

Axes: P ranks, S matrices of one rank in a round, H rows of a matrix on one rank (the last ranks' may be fewer),
R rows, C columns. Of a parameter of more than two dimensions R is the first and C all others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muloco_runner.distributed.collectives import Collectives
from muloco_runner.distributed.dtensor import as_dtensor_like
from muloco_runner.distributed.ownership import OwnerAssignment, rounds_of
from muloco_runner.distributed.pending import PendingTransfers
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
        self.shards = shards
        self.rank, self.num_ranks = shards.rank, shards.size
        super().__init__(parameters, view, backend, arena=arena)
        self.owners = assignment.assign(len(parameters), self.rows, self.columns, self.blocks)
        self.rounds = rounds_of(self.owners, self.num_ranks, self.parameters_at_once)
        self.rows_a_rank = -(-self.shape[0] // self.num_ranks)

    def state(self, index: int) -> dict[str, Tensor]:
        return {"momentum": as_dtensor_like(self.momentum(index), self.parameters[index])}

    def step(self, group: dict[str, Any], pending: PendingTransfers) -> None:
        updated = self._accumulate(group, self.position)
        dtype = result_dtype(self.backend, self.rows, self.columns, self.dtype)
        for of_rank in self.rounds:
            full_SRC = self._to_owners(group, of_rank)
            rows_PSHC = full_SRC.new_zeros(
                self.num_ranks, max(map(len, of_rank)), self.rows_a_rank, *self.shape[1:], dtype=dtype
            )
            if len(full_SRC):
                orthogonal_SRC = self._orthogonalized(group, full_SRC, dtype)
                for rank, rows_SHC in enumerate(orthogonal_SRC.split(self.rows_a_rank, dim=1)):
                    rows_PSHC[rank, : len(full_SRC), : rows_SHC.shape[1]].copy_(rows_SHC)
            self._to_shards(group, of_rank, rows_PSHC, updated, pending)
        self._accumulated = {}

    def _to_owners(self, group: dict[str, Any], of_rank: list[list[int]]) -> Tensor:
        """Return the full updates of this rank's matrices of a round; every rank sends the rows it has."""
        most, local_rows = max(map(len, of_rank)), self.momentum_BRC.shape[1]
        sent_PSHC = self.momentum_BRC.new_zeros(self.num_ranks, most, self.rows_a_rank, *self.shape[1:])
        for rank, indices in enumerate(of_rank):
            if indices:
                sent_PSHC[rank, : len(indices), :local_rows].copy_(self._raw_updates(group, indices))
        received_PSHC = torch.empty_like(sent_PSHC)
        self.shards.all_to_all(received_PSHC, sent_PSHC)
        full_SRC = received_PSHC.transpose(0, 1).reshape(most, -1, *self.shape[1:])
        return full_SRC[: len(of_rank[self.rank]), : self.shape[0]]

    def _to_shards(
        self,
        group: dict[str, Any],
        of_rank: list[list[int]],
        rows_PSHC: Tensor,
        updated: list[int],
        pending: PendingTransfers,
    ) -> None:
        """Start to send every rank its rows of this round's matrices; they are applied once received."""
        received_PSHC = torch.empty_like(rows_PSHC)
        transfer = self.shards.all_to_all(received_PSHC, rows_PSHC, async_op=True)
        local_rows = self.momentum_BRC.shape[1]
        received = {
            index: received_PSHC[rank, number, :local_rows]
            for rank, indices in enumerate(of_rank)
            for number, index in enumerate(indices)
        }
        chosen = [index for index in updated if index in received]
        pending.add_round((transfer, lambda: self.apply_update(group, chosen, [received[index] for index in chosen])))
