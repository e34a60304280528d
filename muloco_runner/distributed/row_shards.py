"""Tensors whose rows lie on several ranks, gathered in full at one owner each, and scattered back.

For what needs the full tensor: quantisation levels that all of it shares, its largest values, its orthogonalisation.

Axes: P ranks, T tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from muloco_runner.distributed.collectives import Collectives, Transfer
from muloco_runner.distributed.ownership import OwnerAssignment


class FullTensors:
    """A fixed list of tensors, of which each rank of `ranks` holds some rows, in the ranks' order, possibly none."""

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        rows_PT: Sequence[Sequence[int]],
        owners: Sequence[int],
        ranks: Collectives,
        row_axis: int = 0,
    ) -> None:
        """`shapes` are those of the full tensors, whose rows lie along `row_axis`."""
        self._rows_PT, self._ranks, self._row_axis = rows_PT, ranks, row_axis
        self._shapes_PT = [
            [(*shape[:row_axis], n, *shape[row_axis + 1 :]) for shape, n in zip(shapes, rows_T, strict=True)]
            for rows_T in rows_PT
        ]
        """The shape of each tensor's rows on each rank."""
        self._shapes = shapes
        self._of_owner = [[index for index, of in enumerate(owners) if of == rank] for rank in range(ranks.size)]
        self.owned = self._of_owner[ranks.rank]
        """Indices of the tensors that this rank owns."""

    @classmethod
    def of(cls, shards: Sequence[Tensor], ranks: Collectives) -> FullTensors:
        """Return those of which this rank holds `shards`, owned by ranks with about as many values each. All ranks must
        call it."""
        rows_PT = torch.zeros(ranks.size, len(shards), dtype=torch.int64)
        rows_PT[ranks.rank] = torch.tensor([len(shard) for shard in shards])
        ranks.all_reduce(rows_PT)
        shapes = [
            torch.Size((rows, *shard.shape[1:])) for rows, shard in zip(rows_PT.sum(0).tolist(), shards, strict=True)
        ]
        assignment, owners = OwnerAssignment(ranks.size), [0] * len(shapes)
        for index in sorted(range(len(shapes)), key=lambda index: -shapes[index].numel()):
            owners[index] = assignment.add(shapes[index].numel())
        return cls(shapes, rows_PT.tolist(), owners, ranks)

    def empty(self) -> list[Tensor]:
        """Return tensors shaped like the owned ones, on the meta device."""
        return [torch.empty(*self._shapes[index], device="meta") for index in self.owned]

    def gather(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """Return the owned tensors in full, in the order of `owned`."""
        sent = [[shards[index] for index in indices] for indices in self._of_owner]
        due = [[shapes_T[index] for index in self.owned] for shapes_T in self._shapes_PT]
        transfer, received = self._ranks.exchange(sent, due, like=shards[0])
        transfer.wait()
        return [torch.cat(rows, dim=self._row_axis) for rows in zip(*received, strict=True)]

    def begin_scatter(self, full: Sequence[Tensor], like: Tensor) -> tuple[Transfer, list[Tensor]]:
        """Start to send every rank its rows of the owned tensors, given in full, in dtype and on the device of `like`;
        return the rows of all tensors that this rank gets, to be read after the transfer."""
        rows_TP = [
            tensor.split([rows_T[index] for rows_T in self._rows_PT], dim=self._row_axis)
            for index, tensor in zip(self.owned, full, strict=True)
        ]
        sent = [[rows_P[rank] for rows_P in rows_TP] for rank in range(self._ranks.size)]
        due = [[self._shapes_PT[self._ranks.rank][index] for index in indices] for indices in self._of_owner]
        transfer, received = self._ranks.exchange(sent, due, like)
        rows = dict(zip(chain.from_iterable(self._of_owner), chain.from_iterable(received), strict=True))
        return transfer, [rows[index] for index in range(len(rows))]

    def scatter(self, full: Sequence[Tensor], shards: Sequence[Tensor]) -> None:
        """Write the rows of the owned tensors, given in full, into every rank's shards."""
        transfer, rows = self.begin_scatter(full, like=shards[0])
        transfer.wait()
        torch._foreach_copy_(list(shards), rows)
