"""Muon on parameters whose rows are spread over ranks (FSDP2's `fully_shard`): it sees whole matrices nonetheless.

Momentum is kept like its parameter, by rows. A step brings each matrix's update to its owner (an all-to-all), which
orthogonalises it once, and sends every rank its rows back in the precision in which the backend computes; they travel
while the next matrices are worked on.

Axes: P ranks, S places a rank, H rows a rank (the last ranks' may be fewer), R rows, C columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muloco_runner.distributed.collectives import Collectives
from muloco_runner.distributed.dtensor import placed_like
from muloco_runner.distributed.ownership import Owners, rounds_of
from muloco_runner.distributed.pending import InFlight
from muloco_runner.optimizers.buckets.base import MatrixBank, polynomial_of
from muloco_runner.optimizers.orthogonalize import matrices_at_once, orthogonalize, result_dtype


class ShardedBank(MatrixBank):
    """Same-shape DTensors of one mesh, rows spread over the ranks of `shards`."""

    def __init__(self, parameters: list[Tensor], backend: str, shards: Collectives, owners: Owners) -> None:
        self.shards = shards
        self.rank, self.num_ranks = shards.rank, shards.size
        super().__init__(parameters, backend)
        self.owners = owners.deal(len(parameters), self.rows, self.columns)
        self.rounds = rounds_of(self.owners, self.num_ranks, matrices_at_once(self.backend, self.rows, self.columns))
        self.rows_a_rank = -(-self.rows // self.num_ranks)

    def state(self, index: int) -> dict[str, Tensor]:
        return {"momentum": placed_like(self.momentum(index), self.parameters[index])}

    def launch(self, group: dict[str, Any], in_flight: InFlight) -> None:
        moving = self._take_gradients(group, self.place)
        dtype = result_dtype(self.backend, self.rows, self.columns, self.dtype)
        for of_rank in self.rounds:
            whole_SRC = self._to_owners(group, of_rank)
            rows_PSHC = whole_SRC.new_zeros(
                self.num_ranks, max(map(len, of_rank)), self.rows_a_rank, self.columns, dtype=dtype
            )
            if len(whole_SRC):
                orthogonal_SRC = orthogonalize(whole_SRC, polynomial_of(group), self.backend).to(dtype)
                for rank, rows_SHC in enumerate(orthogonal_SRC.split(self.rows_a_rank, dim=1)):
                    rows_PSHC[rank, : len(whole_SRC), : rows_SHC.shape[1]].copy_(rows_SHC)
            self._to_shards(group, of_rank, rows_PSHC, moving, in_flight)
        self.gradients, self._taken = [], {}

    def _to_owners(self, group: dict[str, Any], of_rank: list[list[int]]) -> Tensor:
        """The whole updates of this rank's matrices of a round; every rank sends the rows it has."""
        places, here = max(map(len, of_rank)), self.momentum_BRC.shape[1]
        sent_PSHC = self.momentum_BRC.new_zeros(self.num_ranks, places, self.rows_a_rank, self.columns)
        for rank, indices in enumerate(of_rank):
            if indices:
                sent_PSHC[rank, : len(indices), :here].copy_(self._updates(group, indices))
        got_PSHC = torch.empty_like(sent_PSHC)
        self.shards.all_to_all(got_PSHC, sent_PSHC)
        whole_SRC = got_PSHC.transpose(0, 1).reshape(places, -1, self.columns)
        return whole_SRC[: len(of_rank[self.rank]), : self.rows]

    def _to_shards(
        self,
        group: dict[str, Any],
        of_rank: list[list[int]],
        rows_PSHC: Tensor,
        moving: list[int],
        in_flight: InFlight,
    ) -> None:
        """Sends every rank its rows of this round's matrices; they are applied when they have come."""
        got_PSHC = torch.empty_like(rows_PSHC)
        transfer = self.shards.all_to_all(got_PSHC, rows_PSHC, async_op=True)
        here = self.momentum_BRC.shape[1]
        arrived = {
            index: got_PSHC[rank, place, :here] for rank, mine in enumerate(of_rank) for place, index in enumerate(mine)
        }
        indices = [index for index in moving if index in arrived]
        in_flight.push((transfer, lambda: self.move(group, indices, [arrived[index] for index in indices])))
