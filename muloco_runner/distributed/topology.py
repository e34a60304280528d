"""Which ranks train which workers: K workers, each a data-parallel group of replicas, on the ranks there are.

Fewer ranks than workers: each rank holds several (virtual) workers and trains them in turn. More ranks than workers:
each worker is a group of replicas that share its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.distributed.collectives import Collectives, Transfer, in_messages
from muloco_runner.distributed.message_sizes import MESSAGE_VALUES
from muloco_runner.distributed.traffic import Traffic


@dataclass(frozen=True)
class Topology:
    """The place of this rank."""

    num_workers: int
    rank: int = 0
    num_ranks: int = 1

    def __post_init__(self) -> None:
        if self.num_workers % self.num_ranks and self.num_ranks % self.num_workers:
            raise ConfigError(
                f"{self.num_ranks} ranks cannot share {self.num_workers} workers evenly: "
                f"use a divisor or a multiple of {self.num_workers} ranks"
            )

    @property
    def replicas(self) -> int:
        """Ranks of one worker."""
        return max(1, self.num_ranks // self.num_workers)

    @property
    def replica(self) -> int:
        """This rank's number among the replicas of its worker."""
        return self.rank % self.replicas

    @property
    def local_workers(self) -> range:
        """The workers this rank trains."""
        if self.num_ranks >= self.num_workers:
            worker = self.rank // self.replicas
            return range(worker, worker + 1)
        held = self.num_workers // self.num_ranks
        return range(self.rank * held, (self.rank + 1) * held)

    @property
    def is_main(self) -> bool:
        """The one rank that writes the run's records."""
        return self.rank == 0

    def check(self, run: RunConfig) -> None:
        """A worker's batch must split over its replicas."""
        if run.worker_batch_sequences % self.replicas:
            raise ConfigError(
                f"a worker batch of {run.worker_batch_sequences} sequences does not split over {self.replicas} ranks: "
                "use fewer ranks or a larger global_batch_tokens"
            )


class Communicator:
    """Collectives over the ranks of a topology; on one rank they cost nothing.

    `sharded` says that the replicas of a worker each hold rows of its model instead of a copy. Everything that is sent
    is told to `traffic`; so is the time that training waits for it.
    """

    # Only where there are several ranks.
    among_replicas: Collectives
    """The ranks that share this rank's worker."""
    _among_holders: Collectives
    _among_ranks: Collectives

    def __init__(self, topology: Topology, sharded: bool = False, traffic: Traffic | None = None) -> None:
        self.topology, self.sharded = topology, sharded and topology.replicas > 1
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
                self._among_holders = Collectives(group, self.traffic)
        assert dist.group.WORLD is not None
        self._among_ranks = Collectives(dist.group.WORLD, self.traffic)

    def average_over_replicas(self, tensor: Tensor) -> Tensor:
        """The mean over the replicas of this rank's worker, in place."""
        replicas = self.topology.replicas
        if replicas > 1:
            self.among_replicas.all_reduce(tensor)
            tensor /= replicas
        return tensor

    def sum_over_replicas(self, tensors: list[Tensor]) -> None:
        """Replaces each float32 tensor by its sum over the replicas of this rank's worker.

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

    def sum_at_owners(self, mine: Tensor, parts: Tensor) -> Transfer:
        """Into `mine` the sum over the replicas of their row for this one of `parts` (replicas, values), in that order.

        Half of what the sum costs on every replica.
        """
        pieces = torch.empty_like(parts)
        transfer = self.among_replicas.all_to_all(pieces, parts)
        mine.copy_(_sum_of_rows(pieces))
        return transfer

    def _sum_in_order(self, flat: Tensor) -> Tensor:
        """Every replica sums one piece of all replicas' vectors, whose size they divide; the sums meet again."""
        pieces = torch.empty_like(flat)
        self.among_replicas.all_to_all(pieces, flat)
        self.among_replicas.all_gather(flat, _sum_of_rows(pieces.view(self.topology.replicas, -1)))
        return flat

    @property
    def holders(self) -> list[range]:
        """The workers held by each of the ranks that hold the same part of a worker as this one, in order."""
        topology = self.topology
        step = topology.replicas
        return [
            Topology(topology.num_workers, rank, topology.num_ranks).local_workers
            for rank in range(topology.replica, topology.num_ranks, step)
        ]

    @property
    def holder(self) -> int:
        """This rank's place among them."""
        return self.topology.rank // self.topology.replicas

    def gather_over_workers(self, local: list[Tensor]) -> list[Tensor]:
        """Flat tensors of the workers held here, one each, to those of all K workers, in worker order."""
        if len(self.holders) == 1:
            return local
        mine = torch.stack(local)
        everyone = mine.new_empty(len(self.holders) * len(mine), *mine.shape[1:])
        self._among_holders.all_gather(everyone, mine)
        return list(everyone)

    def exchange_over_workers(self, outgoing: list[Tensor], incoming: list[int]) -> list[Tensor]:
        """Sends a flat tensor to each of the `holders`; returns what each sent here, `incoming` values of it."""
        return outgoing if len(outgoing) == 1 else _exchange(self._among_holders, outgoing, incoming)

    def exchange_over_replicas(self, outgoing: list[Tensor], incoming: list[int]) -> list[Tensor]:
        """The same among the replicas of this rank's worker."""
        return outgoing if len(outgoing) == 1 else _exchange(self.among_replicas, outgoing, incoming)

    def sum_over_workers(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over the `holders`, in place."""
        if len(self.holders) > 1:
            self._among_holders.all_reduce(tensor)
        return tensor

    def in_background(self) -> Communicator:
        """The same ranks over groups of their own, for a thread beside training; every rank must ask for it."""
        return Communicator(self.topology, self.sharded, self.traffic.beside_training())

    def sum_over_shards(self, tensor: Tensor) -> Tensor:
        """A sum over this rank's rows of a model to that over the whole model, in place; nothing to do for a copy."""
        if self.sharded:
            self.among_replicas.all_reduce(tensor)
        return tensor

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over all ranks, in place."""
        if self.topology.num_ranks > 1:
            self._among_ranks.all_reduce(tensor)
        return tensor

    def begin_sum_over_ranks(self, tensor: Tensor) -> Transfer:
        """The same, to be waited for; of several ranks."""
        return self._among_ranks.all_reduce(tensor, async_op=True)


def _exchange(among: Collectives, outgoing: list[Tensor], incoming: list[int]) -> list[Tensor]:
    sizes = [part.numel() for part in outgoing]
    arrived = outgoing[0].new_empty(sum(incoming))
    among.all_to_all(arrived, torch.cat(outgoing), incoming, sizes)
    return list(arrived.split(incoming))


def _sum_of_rows(rows: Tensor) -> Tensor:
    """The first half's sum plus the second half's."""
    if len(rows) == 1:
        return rows[0]
    half = len(rows) // 2
    return _sum_of_rows(rows[:half]) + _sum_of_rows(rows[half:])
