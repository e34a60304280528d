"""What the ranks of a topology send each other: among the replicas of a worker, among workers, and among all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from muloco_runner.distributed.collectives import Collectives, Transfer, in_messages
from muloco_runner.distributed.message_sizes import MESSAGE_VALUES
from muloco_runner.distributed.topology import Topology
from muloco_runner.distributed.traffic import Traffic

T = TypeVar("T")


class Communicator:
    """Collectives over the ranks of a topology; on one rank they cost nothing.

    `sharded` says that the replicas of a worker each hold rows of its model instead of all of it; with `copies` above
    one that many groups of consecutive replicas each have all rows. `traffic` counts what is sent and the time that
    training waits for it.

    The *worker peers* of a rank are the ranks that hold the same part of other workers, itself included, in order.
    """

    # These exist only where there are several ranks.
    among_replicas: Collectives
    """The ranks that share this rank's worker."""
    among_shards: Collectives
    """Those of them that hold one copy of the model's rows, this rank's; all where there is one copy."""
    _among_copies: Collectives
    """Those that hold the same rows."""
    _among_peers: Collectives
    _among_ranks: Collectives

    def __init__(
        self, topology: Topology, sharded: bool = False, traffic: Traffic | None = None, copies: int = 1
    ) -> None:
        self.topology, self.sharded, self.copies = topology, sharded and topology.replicas > 1, copies
        assert topology.replicas % copies == 0
        self.num_shards = topology.replicas // copies if self.sharded else 1
        self.shard = topology.replica % self.num_shards
        """Number of this rank among those that hold one copy of the rows."""
        self.traffic = Traffic() if traffic is None else traffic
        if topology.num_ranks == 1:
            return
        # Every rank takes part in making every group, in the same order.
        replicas = topology.replicas
        for first in range(0, topology.num_ranks, replicas):
            group = dist.new_group(list(range(first, first + replicas)))
            if first <= topology.rank < first + replicas:
                self.among_replicas = Collectives(group, self.traffic)
        for replica in range(replicas):
            group = dist.new_group(list(range(replica, topology.num_ranks, replicas)))
            if topology.replica == replica:
                self._among_peers = Collectives(group, self.traffic)
        if self.sharded:
            self.among_shards = self.among_replicas
            if copies > 1:
                self._split_replicas()
        assert dist.group.WORLD is not None
        self._among_ranks = Collectives(dist.group.WORLD, self.traffic)

    def _split_replicas(self) -> None:
        topology, shards = self.topology, self.num_shards
        for first in range(0, topology.num_ranks, shards):
            group = dist.new_group(list(range(first, first + shards)))
            if first <= topology.rank < first + shards:
                self.among_shards = Collectives(group, self.traffic)
        for first in range(0, topology.num_ranks, topology.replicas):
            for shard in range(shards):
                ranks = list(range(first + shard, first + topology.replicas, shards))
                group = dist.new_group(ranks)
                if topology.rank in ranks:
                    self._among_copies = Collectives(group, self.traffic)

    def average_over_copies(self, tensors: list[Tensor]) -> None:
        """Replace each float32 tensor by its mean over the copies of this rank's rows: one all-reduce a message."""
        if self.copies == 1:
            return
        for message in in_messages(tensors, MESSAGE_VALUES):
            flat = torch.cat([tensor.flatten() for tensor in message])
            self._among_copies.all_reduce(flat)
            pieces = flat.div_(self.copies).split([tensor.numel() for tensor in message])
            torch._foreach_copy_(message, [piece.view_as(t) for piece, t in zip(pieces, message, strict=True)])

    def average_over_replicas(self, tensor: Tensor) -> Tensor:
        """The mean over the replicas of this rank's worker, in place."""
        replicas = self.topology.replicas
        if replicas > 1:
            self.among_replicas.all_reduce(tensor)
            tensor /= replicas
        return tensor

    def sum_over_replicas(self, tensors: list[Tensor]) -> None:
        """Replace each float32 tensor by its sum over the replicas of this rank's worker.

        The order is fixed: pairwise by replica number, on one rank for each element. Costs what an all-reduce costs.
        """
        if self.topology.replicas == 1:
            return
        for bucket in in_messages(tensors, MESSAGE_VALUES):
            sizes = [tensor.numel() for tensor in bucket]
            padding = bucket[0].new_zeros(-sum(sizes) % self.topology.replicas)
            summed = self._sum_in_order(torch.cat([*(tensor.flatten() for tensor in bucket), padding]))
            pieces = summed[: sum(sizes)].split(sizes)
            torch._foreach_copy_(bucket, [piece.view_as(t) for piece, t in zip(pieces, bucket, strict=True)])

    def sum_at_owners(self, own: Tensor, parts: Tensor) -> Transfer:
        """Write into `own` (values) the sum over the replicas of this one's row of their `parts` (replicas, values).

        The order is that of `sum_over_replicas`, at half its cost.
        """
        pieces = torch.empty_like(parts)
        transfer = self.among_replicas.all_to_all(pieces, parts)
        own.copy_(_sum_of_rows(pieces))
        return transfer

    def _sum_in_order(self, flat: Tensor) -> Tensor:
        """Sum vectors whose size the number of replicas divides: each replica one piece, all pieces gathered again."""
        pieces = torch.empty_like(flat)
        self.among_replicas.all_to_all(pieces, flat)
        self.among_replicas.all_gather(flat, _sum_of_rows(pieces.view(self.topology.replicas, -1)))
        return flat

    @property
    def workers_of_peers(self) -> list[range]:
        """The workers that each of the worker peers trains."""
        topology = self.topology
        step = topology.replicas
        return [
            Topology(topology.num_workers, rank, topology.num_ranks).local_workers
            for rank in range(topology.replica, topology.num_ranks, step)
        ]

    @property
    def peer_index(self) -> int:
        """This rank's index among its worker peers."""
        return self.topology.rank // self.topology.replicas

    def gather_over_workers(self, local: list[Tensor]) -> list[Tensor]:
        """Return the flat tensors of all K workers, in worker order, given those of this rank's workers."""
        if len(self.workers_of_peers) == 1:
            return local
        mine = torch.stack(local)
        everyone = mine.new_empty(len(self.workers_of_peers) * len(mine), *mine.shape[1:])
        self._among_peers.all_gather(everyone, mine)
        return list(everyone)

    def exchange_over_workers(
        self, sent: list[list[Tensor]], due: Sequence[Sequence[Sequence[int]]], like: Tensor
    ) -> list[list[Tensor]]:
        """Send a list of tensors to each worker peer; return those that each sent to this rank, of the shapes `due`, in
        the dtype and on the device of `like`."""
        if len(sent) == 1:
            return sent
        transfer, received = self._among_peers.exchange(sent, due, like)
        transfer.wait()
        return received

    def sum_over_workers(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over the worker peers, in place."""
        if len(self.workers_of_peers) > 1:
            self._among_peers.all_reduce(tensor)
        return tensor

    def in_background(self) -> Communicator:
        """Return a communicator of the same ranks for a thread beside training, with process groups of its own.

        All ranks must call it together.
        """
        return Communicator(self.topology, self.sharded, self.traffic.beside_training(), self.copies)

    def sum_over_shards(self, tensor: Tensor) -> Tensor:
        """Turn a sum over this rank's rows of a model into that over the full model, in place.

        Summed over all copies, then divided by their number: so that copies come to one result, to the bit.
        """
        if self.sharded:
            self.among_replicas.all_reduce(tensor)
            if self.copies > 1:
                tensor.div_(self.copies, rounding_mode=None if tensor.is_floating_point() else "floor")
        return tensor

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over all ranks, in place."""
        if self.topology.num_ranks > 1:
            self._among_ranks.all_reduce(tensor)
        return tensor

    def of_first_rank(self, value: T) -> T:
        """What the first rank calls it with, on all ranks: any object that can be pickled."""
        if self.topology.num_ranks == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def begin_sum_over_ranks(self, tensor: Tensor) -> Transfer:
        """Start the elementwise sum over all ranks, in place. There must be several."""
        return self._among_ranks.all_reduce(tensor, async_op=True)


def _sum_of_rows(rows: Tensor) -> Tensor:
    """Return the sum of the first half of the rows plus that of the second half."""
    if len(rows) == 1:
        return rows[0]
    half = len(rows) // 2
    return _sum_of_rows(rows[:half]) + _sum_of_rows(rows[half:])
