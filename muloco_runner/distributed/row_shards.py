"""Tensors whose rows are spread over a worker's replicas, whole for a while: each at one owner, then back.

For what needs to see a whole tensor: levels shared by it, its largest values, its orthogonalisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from muloco_runner.distributed.topology import Communicator


class WholeTensors:
    """A fixed list of tensors, of which this rank holds `shards`: rows in order of the replicas, possibly none."""

    def __init__(self, shards: Sequence[Tensor], communicator: Communicator) -> None:
        self.communicator = communicator
        topology = communicator.topology
        rows_PT = torch.zeros(topology.replicas, len(shards), dtype=torch.int64)
        rows_PT[topology.replica] = torch.tensor([len(shard) for shard in shards])
        self.rows_PT: list[list[int]] = communicator.sum_over_shards(rows_PT).tolist()
        """Rows of each tensor on each replica."""
        self.row_shapes = [shard.shape[1:] for shard in shards]
        self.owners = self._deal()
        self.owned = [place for place, owner in enumerate(self.owners) if owner == topology.replica]
        """Places of the tensors that come whole to this rank."""

    def _deal(self) -> list[int]:
        """An owner for each tensor: the largest first, to whom has least."""
        columns = zip(*self.rows_PT, strict=True)
        sizes = [sum(rows) * shape.numel() for rows, shape in zip(columns, self.row_shapes, strict=True)]
        loads = [0] * len(self.rows_PT)
        owners = [0] * len(sizes)
        for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
            owners[place] = loads.index(min(loads))
            loads[owners[place]] += sizes[place]
        return owners

    def empty(self) -> list[Tensor]:
        """Tensors like the owned ones, without memory."""
        rows = [sum(counts) for counts in zip(*self.rows_PT, strict=True)]
        return [torch.empty(rows[place], *self.row_shapes[place], device="meta") for place in self.owned]

    def gather(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """The owned tensors, whole, in order of `owned`."""
        replicas, own = range(len(self.rows_PT)), self.communicator.topology.replica
        outgoing = [_join([s for s, of in zip(shards, self.owners, strict=True) if of == o], shards) for o in replicas]
        arrived = self.communicator.exchange_over_replicas(outgoing, [sum(self._lengths(r, own)) for r in replicas])
        parts = [iter(part.split(self._lengths(r, own))) for r, part in zip(replicas, arrived, strict=True)]
        return [torch.cat([next(part) for part in parts]).view(-1, *self.row_shapes[place]) for place in self.owned]

    def scatter(self, wholes: Sequence[Tensor], shards: Sequence[Tensor]) -> None:
        """Writes the rows of the owned tensors, given whole, into every replica's shards."""
        replicas, own = range(len(self.rows_PT)), self.communicator.topology.replica
        rows = [
            w.split([self.rows_PT[r][place] for r in replicas]) for place, w in zip(self.owned, wholes, strict=True)
        ]
        outgoing = [_join([parts[r] for parts in rows], shards) for r in replicas]
        arrived = self.communicator.exchange_over_replicas(outgoing, [sum(self._lengths(own, o)) for o in replicas])
        for owner, part in zip(replicas, arrived, strict=True):
            places = [place for place, of in enumerate(self.owners) if of == owner]
            for place, values in zip(places, part.split(self._lengths(own, owner)), strict=True):
                shards[place].copy_(values.view(shards[place].shape))

    def _lengths(self, replica: int, owner: int) -> list[int]:
        """Values of each tensor of `owner` that a replica holds."""
        return [
            rows * shape.numel()
            for rows, shape, of in zip(self.rows_PT[replica], self.row_shapes, self.owners, strict=True)
            if of == owner
        ]


def _join(parts: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts]) if parts else like[0].new_empty(0)
