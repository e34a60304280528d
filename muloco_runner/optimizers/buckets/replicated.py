"""Replicas that hold the same parameters share Muon's work: each matrix has one owner, which alone keeps its momentum.

A step is one orthogonalisation of each matrix, by its owner, and an all-gather of the results in the precision in
which the backend computes; it travels while the next matrices are worked on. Every rank applies what was gathered, its
own included, so that replicas stay equal to the bit.

Axes: P ranks, W values of a lane in one message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from muloco_runner.distributed.collectives import Collectives
from muloco_runner.distributed.owner_buffers import Lanes
from muloco_runner.distributed.ownership import Owners
from muloco_runner.distributed.pending import InFlight, Travelling
from muloco_runner.optimizers.buckets.base import MatrixBank
from muloco_runner.optimizers.orthogonalize import matrices_at_once


class SharedBank:
    """Parameters of several shapes, of which every rank of `replicas` has a copy; their results have one dtype."""

    def __init__(
        self,
        alike: Sequence[list[Tensor]],
        backend: str,
        replicas: Collectives,
        owners: Owners,
        result_dtype: torch.dtype,
    ) -> None:
        """`alike` are lists of parameters of one shape."""
        self.replicas, self.result_dtype = replicas, result_dtype
        self.parameters = [parameter for same in alike for parameter in same]
        self.gradients: list[Tensor | None] = []
        self.owners: list[int] = []
        self._of_shapes: list[MatrixBank] = []
        self._slots: list[tuple[MatrixBank, int]] = []
        """Of each matrix: the bank of its shape, and its index there."""
        for same in alike:
            dealt = owners.deal(len(same), *same[0].shape)
            bank = MatrixBank(same, backend, [index for index, owner in enumerate(dealt) if owner == replicas.rank])
            self.owners += dealt
            self._of_shapes.append(bank)
            self._slots += [(bank, index) for index in range(len(same))]
        self._lanes = Lanes([p.numel() for p in self.parameters], self.owners, replicas.size)
        self._moves: list[bool] = []
        """Whether a matrix has a gradient in the step that was prepared, here or at its owner."""

    def state(self, index: int) -> dict[str, Tensor]:
        """What is kept for a parameter on this rank, by name."""
        bank, slot = self._slots[index]
        return bank.state(slot)

    def gather_momenta(self) -> list[Tensor]:
        """Every matrix's momentum, on every rank: a matrix at a time, from its owner."""
        momenta = []
        for owner, (bank, slot) in zip(self.owners, self._slots, strict=True):
            here = owner == self.replicas.rank
            mine = bank.momentum(slot) if here else bank.momentum_BRC.new_empty(bank.rows, bank.columns)
            self.replicas.broadcast(mine, owner)
            momenta.append(mine)
        return momenta

    def prepare(self, group: dict[str, Any], gradients: Sequence[Tensor | None], clip: Tensor | None) -> None:
        """Takes the gradients of the next step, one a parameter (of the matrices that others own any tensor), and a
        factor on them (0-D) if any."""
        self.gradients = list(gradients)
        self._moves = [gradient is not None for gradient in gradients]
        start = 0
        for bank in self._of_shapes:
            end = start + len(bank.parameters)
            bank.prepare(group, self.gradients[start:end], clip)
            start = end

    def launch(self, group: dict[str, Any], in_flight: InFlight) -> None:
        """The step, with the hyper-parameters of `group`; what travels is left in `in_flight`."""
        lane = torch.zeros(self._lanes.length, dtype=self.result_dtype, device=self.parameters[0].device)
        arrived: dict[int, list[Tensor]] = {}
        filled = sent = 0
        for bank in self._of_shapes:
            mine, at_once = list(bank.place), matrices_at_once(bank.backend, bank.rows, bank.columns)
            for start in range(0, len(mine), at_once):
                orthogonal_BRC = bank.orthogonal_updates(group, mine[start : start + at_once])
                lane[filled : filled + orthogonal_BRC.numel()].view_as(orthogonal_BRC).copy_(orthogonal_BRC)
                filled += orthogonal_BRC.numel()
                full = filled // max(1, self._lanes.width)
                in_flight.push(*(self._gather(group, number, lane, arrived) for number in range(sent, full)))
                sent = full
        rest = range(sent, self._lanes.num_messages)
        in_flight.push(*(self._gather(group, number, lane, arrived) for number in rest))
        for bank in self._of_shapes:
            bank.gradients = []

    def _gather(self, group: dict[str, Any], number: int, lane: Tensor, arrived: dict[int, list[Tensor]]) -> Travelling:
        """Sends one message's part of this rank's lane to all ranks; what has come whole then is applied."""
        width = self._lanes.width
        lanes_PW = lane.new_empty(self.replicas.size, width)
        mine_W = lane[number * width : (number + 1) * width]
        transfer = self.replicas.all_gather(lanes_PW.view(-1), mine_W, async_op=True)
        return transfer, lambda: self._apply(group, number, lanes_PW, arrived)

    def _apply(self, group: dict[str, Any], number: int, lanes_PW: Tensor, arrived: dict[int, list[Tensor]]) -> None:
        """Moves the parameters whose last values message `number` has brought; the others' are kept in `arrived`."""
        complete: dict[int, tuple[MatrixBank, list[int], list[Tensor]]] = {}
        for index, part in self._lanes.contents[number]:
            if not self._moves[index]:
                continue
            values = arrived.setdefault(index, [])
            values.append(lanes_PW[self.owners[index], part.in_lane])
            if part.in_matrix.stop == self._lanes.sizes[index]:
                del arrived[index]
                bank, slot = self._slots[index]
                _, slots, orthogonal = complete.setdefault(id(bank), (bank, [], []))
                slots.append(slot)
                orthogonal.append((torch.cat(values) if len(values) > 1 else values[0]).view(bank.rows, bank.columns))
        for bank, slots, orthogonal in complete.values():
            bank.move(group, slots, orthogonal)
