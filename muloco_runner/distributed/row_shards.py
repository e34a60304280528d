"""Tensors whose rows are sharded over a worker's replicas, gathered in full at one owner each, and scattered back.

For what needs the full tensor: quantisation levels that all of it shares, its largest values, its orthogonalisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from muloco_runner.distributed.communicator import Communicator


class FullTensors:
    """A fixed list of tensors, of which this rank holds `shards`: rows in order of the replicas, possibly none."""

    def __init__(self, shards: Sequence[Tensor], communicator: Communicator) -> None:
        self.communicator = communicator
        rows_PT = torch.zeros(communicator.num_shards, len(shards), dtype=torch.int64)
        rows_PT[communicator.shard] = torch.tensor([len(shard) for shard in shards])
        self.rows_PT: list[list[int]] = communicator.sum_over_shards(rows_PT).tolist()
        """[replica][tensor] -> rows. Axes: P replicas, T tensors."""
        self.row_shapes = [shard.shape[1:] for shard in shards]
        self.owners = self._assign_owners()
        self.owned = [index for index, owner in enumerate(self.owners) if owner == communicator.shard]
        """Indices of the tensors that this rank owns."""

    def _assign_owners(self) -> list[int]:
        """Return an owner for each tensor: the largest first, each to the replica with the fewest values."""
        columns = zip(*self.rows_PT, strict=True)
        sizes = [sum(rows) * shape.numel() for rows, shape in zip(columns, self.row_shapes, strict=True)]
        loads = [0] * len(self.rows_PT)
        owners = [0] * len(sizes)
        for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
            owners[index] = loads.index(min(loads))
            loads[owners[index]] += sizes[index]
        return owners

    def empty(self) -> list[Tensor]:
        """Return tensors shaped like the owned ones, on the meta device."""
        rows = [sum(counts) for counts in zip(*self.rows_PT, strict=True)]
        return [torch.empty(rows[index], *self.row_shapes[index], device="meta") for index in self.owned]

    def gather(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """Return the owned tensors in full, in the order of `owned`."""
        replicas, own = range(len(self.rows_PT)), self.communicator.shard
        outgoing = [_join([s for s, of in zip(shards, self.owners, strict=True) if of == o], shards) for o in replicas]
        received = self.communicator.exchange_over_shards(outgoing, [sum(self._lengths(r, own)) for r in replicas])
        parts = [iter(part.split(self._lengths(r, own))) for r, part in zip(replicas, received, strict=True)]
        return [torch.cat([next(part) for part in parts]).view(-1, *self.row_shapes[index]) for index in self.owned]

    def scatter(self, full: Sequence[Tensor], shards: Sequence[Tensor]) -> None:
        """Write the rows of the owned tensors, given in full, into every replica's shards."""
        replicas, own = range(len(self.rows_PT)), self.communicator.shard
        rows = [w.split([self.rows_PT[r][index] for r in replicas]) for index, w in zip(self.owned, full, strict=True)]
        outgoing = [_join([parts[r] for parts in rows], shards) for r in replicas]
        received = self.communicator.exchange_over_shards(outgoing, [sum(self._lengths(own, o)) for o in replicas])
        for owner, part in zip(replicas, received, strict=True):
            indices = [index for index, of in enumerate(self.owners) if of == owner]
            for index, values in zip(indices, part.split(self._lengths(own, owner)), strict=True):
                shards[index].copy_(values.view(shards[index].shape))

    def _lengths(self, replica: int, owner: int) -> list[int]:
        """Return how many values of each tensor of `owner` a replica holds."""
        return [
            rows * shape.numel()
            for rows, shape, of in zip(self.rows_PT[replica], self.row_shapes, self.owners, strict=True)
            if of == owner
        ]


def _join(parts: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts]) if parts else like[0].new_empty(0)
