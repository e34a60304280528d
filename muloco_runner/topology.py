"""Which ranks train which workers: K workers, each a data-parallel group of replicas, on the ranks there are.

Fewer ranks than workers: each rank holds several (virtual) workers and trains them in turn. More ranks than workers:
each worker is a group of replicas that share its batch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.link import EmulatedLink, Traffic

_BUCKET_ELEMENTS = 1 << 24
"""Of one message between replicas: large enough for any link, small beside a model."""


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

    `sharded` says that the replicas of a worker each hold rows of its model instead of a copy. Gradients and
    pseudogradients are counted in `traffic`; so is the time that training waits for them.
    """

    def __init__(self, topology: Topology, sharded: bool = False, link: EmulatedLink | None = None) -> None:
        self.topology, self.sharded = topology, sharded and topology.replicas > 1
        self.link, self.traffic = link, Traffic()
        self.counts_waiting = True
        self._replica_group: dist.ProcessGroup | None = None
        self._leader_group: dist.ProcessGroup | None = None
        if topology.num_ranks > 1:
            # Every rank takes part in making every group, in the same order.
            replicas = topology.replicas
            for first in range(0, topology.num_ranks, replicas):
                group = dist.new_group(list(range(first, first + replicas)))
                if first <= topology.rank < first + replicas:
                    self._replica_group = group
            for replica in range(replicas):
                group = dist.new_group(list(range(replica, topology.num_ranks, replicas)))
                if topology.replica == replica:
                    self._leader_group = group

    @property
    def replica_group(self) -> dist.ProcessGroup:
        """The ranks that share this rank's worker; only where there is more than one."""
        assert self._replica_group is not None
        return self._replica_group

    def average_over_replicas(self, tensor: Tensor) -> Tensor:
        """The mean over the replicas of this rank's worker, in place."""
        replicas = self.topology.replicas
        if replicas > 1:
            dist.all_reduce(tensor, group=self._replica_group)
            tensor /= replicas
        return tensor

    def sum_over_replicas(self, tensors: list[Tensor]) -> None:
        """Replaces each float32 tensor by its sum over the replicas of this rank's worker.

        The order is fixed: pairwise by replica number, on one rank for each element. Costs what an all-reduce costs.
        """
        if self.topology.replicas == 1:
            return
        for bucket in _buckets(tensors):
            sizes = [tensor.numel() for tensor in bucket]
            padding = bucket[0].new_zeros(-sum(sizes) % self.topology.replicas)
            summed = self._sum_in_order(torch.cat([*(tensor.flatten() for tensor in bucket), padding]))
            pieces = summed[: sum(sizes)].split(sizes)
            torch._foreach_copy_(bucket, [piece.view_as(t) for piece, t in zip(pieces, bucket, strict=True)])

    def _sum_in_order(self, flat: Tensor) -> Tensor:
        """Every replica sums one piece of all replicas' vectors, whose size they divide; the sums meet again."""
        pieces = torch.empty_like(flat)
        replicas = self.topology.replicas
        with self._transfer(num_bytes := 2 * (replicas - 1) * flat.nbytes // replicas, num_bytes, rounds=2):
            dist.all_to_all_single(pieces, flat, group=self._replica_group)
            dist.all_gather_into_tensor(flat, _sum_of_rows(pieces.view(replicas, -1)), group=self._replica_group)
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
        ranks = len(self.holders)
        if ranks == 1:
            return local
        mine = torch.stack(local)
        everyone = [torch.empty_like(mine) for _ in range(ranks)]
        with self._transfer(num_bytes := (ranks - 1) * mine.nbytes, num_bytes):
            dist.all_gather(everyone, mine, group=self._leader_group)
        return list(torch.cat(everyone))

    def exchange_over_workers(self, outgoing: list[Tensor], incoming: list[int]) -> list[Tensor]:
        """Sends a flat tensor to each of the `holders`; returns what each sent here, `incoming` values of it."""
        return self._exchange(outgoing, incoming, self.holder, self._leader_group)

    def exchange_over_replicas(self, outgoing: list[Tensor], incoming: list[int]) -> list[Tensor]:
        """The same among the replicas of this rank's worker."""
        return self._exchange(outgoing, incoming, self.topology.replica, self._replica_group)

    def _exchange(
        self, outgoing: list[Tensor], incoming: list[int], own: int, group: dist.ProcessGroup | None
    ) -> list[Tensor]:
        if len(outgoing) == 1:
            return outgoing
        sizes = [part.numel() for part in outgoing]
        arrived = outgoing[0].new_empty(sum(incoming))
        sent, received = ((sum(parts) - parts[own]) * arrived.element_size() for parts in (sizes, incoming))
        with self._transfer(sent, received):
            dist.all_to_all_single(arrived, torch.cat(outgoing), incoming, sizes, group=group)
        return list(arrived.split(incoming))

    def sum_over_workers(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over the `holders`, in place."""
        if len(self.holders) > 1:
            dist.all_reduce(tensor, group=self._leader_group)
        return tensor

    def in_background(self) -> Communicator:
        """The same ranks over groups of their own, for a thread beside training; every rank must ask for it."""
        other = Communicator(self.topology, self.sharded, self.link)
        other.traffic, other.counts_waiting = self.traffic, False
        return other

    @contextlib.contextmanager
    def _transfer(self, sent: int, received: int, rounds: int = 1) -> Iterator[None]:
        """Around collectives: counts their bytes, as messages straight to each rank move them, and fills the link."""
        began = time.perf_counter()
        yield
        self.traffic.add(sent, received)
        if self.link is not None:
            self.link.carry(began, max(sent, received), rounds)
        if self.counts_waiting:
            self.traffic.wait(time.perf_counter() - began)

    def sum_over_shards(self, tensor: Tensor) -> Tensor:
        """A sum over this rank's rows of a model to that over the whole model, in place; nothing to do for a copy."""
        if self.sharded:
            dist.all_reduce(tensor, group=self._replica_group)
        return tensor

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over all ranks, in place."""
        if self.topology.num_ranks > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        if self.topology.num_ranks > 1:
            dist.barrier()


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Runs of tensors of up to `_BUCKET_ELEMENTS` in all, or of one larger tensor."""
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        room -= tensor.numel()
        if room < 0 or not buckets:
            buckets.append([])
            room = _BUCKET_ELEMENTS - tensor.numel()
        buckets[-1].append(tensor)
    return buckets


def _sum_of_rows(rows: Tensor) -> Tensor:
    """The first half's sum plus the second half's."""
    if len(rows) == 1:
        return rows[0]
    half = len(rows) // 2
    return _sum_of_rows(rows[:half]) + _sum_of_rows(rows[half:])
