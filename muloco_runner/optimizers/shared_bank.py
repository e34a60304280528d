"""Replicas that hold the same parameters share Muon's work: each matrix has one owner, which alone keeps its momentum.

A step is one orthogonalisation of each matrix, by its owner, and an all-gather of the results in the precision in
which the backend computes; it travels while the next matrices are worked on. Every rank applies what was gathered, its
own included, so that replicas stay equal to the bit.

Axes: P ranks, S places a rank (collectives want equal shares: the last may stay empty), R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from muloco_runner.collectives import Collectives
from muloco_runner.optimizers.in_flight import InFlight
from muloco_runner.optimizers.matrix_bank import MatrixBank, polynomial_of
from muloco_runner.optimizers.orthogonalize import matrices_at_once, orthogonalize, result_dtype
from muloco_runner.optimizers.owners import Owners, rounds_of


class SharedBank(MatrixBank):
    """Same-shape parameters of which every rank of `replicas` has a copy."""

    def __init__(self, parameters: list[Tensor], backend: str, replicas: Collectives, owners: Owners) -> None:
        self.replicas = replicas
        self.rank, self.num_ranks = replicas.rank, replicas.size
        self.owners = owners.deal(len(parameters), *parameters[0].shape)
        super().__init__(parameters, backend, [index for index, owner in enumerate(self.owners) if owner == self.rank])
        self.rounds = rounds_of(self.owners, self.num_ranks, matrices_at_once(self.backend, self.rows, self.columns))

    def average_gradients(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The mean of each gradient over the ranks, on its owner; None elsewhere.

        One reduce-scatter, which sends half of what an all-reduce does. All ranks must have gradients of the same
        matrices.
        """
        places = max(self.owners.count(rank) for rank in range(self.num_ranks))
        sent_PSRC = self.parameters[0].new_zeros(self.num_ranks, places, self.rows, self.columns)
        taken = [0] * self.num_ranks
        for owner, gradient in zip(self.owners, gradients, strict=True):
            if gradient is not None:
                sent_PSRC[owner, taken[owner]].copy_(gradient)
            taken[owner] += 1
        mine_SRC = torch.empty_like(sent_PSRC[0])
        self.replicas.reduce_scatter(mine_SRC, sent_PSRC.flatten(0, 1))
        mine_SRC /= self.num_ranks
        return [
            mine_SRC[self.place[index]] if index in self.place and gradient is not None else None
            for index, gradient in enumerate(gradients)
        ]

    def gather_momenta(self) -> list[Tensor]:
        """Every matrix's momentum, on every rank: a matrix at a time, from its owner."""
        momenta = []
        for index, owner in enumerate(self.owners):
            mine = self.momentum(index) if index in self.place else self.momentum_BRC.new_empty(self.rows, self.columns)
            self.replicas.broadcast(mine, owner)
            momenta.append(mine)
        return momenta

    def prepare(self, group: dict[str, Any], gradients: Sequence[Tensor | None], clip: Tensor | None) -> None:
        super().prepare(group, gradients, clip)
        # Not `gradients`, which may be here for the matrices owned alone.
        self.moving = [index for index, parameter in enumerate(self.parameters) if parameter.grad is not None]

    def launch(self, group: dict[str, Any], in_flight: InFlight) -> None:
        self._take_gradients(group, self.place)
        dtype = result_dtype(self.backend, self.rows, self.columns, self.dtype)
        for of_rank in self.rounds:
            mine_SRC = torch.zeros(max(map(len, of_rank)), self.rows, self.columns, dtype=dtype, device=self.device)
            if mine := of_rank[self.rank]:
                update_SRC = self._updates(group, mine)
                mine_SRC[: len(mine)].copy_(orthogonalize(update_SRC, polynomial_of(group), self.backend))
            self._gather(group, of_rank, mine_SRC, in_flight)
        self.gradients, self._taken = [], {}

    def _gather(self, group: dict[str, Any], of_rank: list[list[int]], mine_SRC: Tensor, in_flight: InFlight) -> None:
        """Sends this round's matrices to all ranks; theirs are applied when they have come."""
        all_PSRC = mine_SRC.new_empty(self.num_ranks, *mine_SRC.shape)
        transfer = self.replicas.all_gather(all_PSRC.flatten(0, 1), mine_SRC, async_op=True)
        arrived = {
            index: all_PSRC[rank, place] for rank, mine in enumerate(of_rank) for place, index in enumerate(mine)
        }
        moving = [index for index in self.moving if index in arrived]
        in_flight.push(transfer, lambda: self._move(group, moving, [arrived[index] for index in moving]))
