"""Several processes that evaluate one model together, as torchrun or srun starts them: each does a share of the work,
and all have the whole result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.rendezvous import ProcessRank, joined_ranks
from muloco_runner.distributed.topology import Topology

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that evaluate together; alone where nothing is said."""

    communicator: Communicator = field(default_factory=lambda: Communicator(Topology(1)))

    @property
    def rank(self) -> int:
        return self.communicator.topology.rank

    @property
    def number(self) -> int:
        return self.communicator.topology.num_ranks

    def agreed(self, look: Callable[[], T]) -> T:
        """What the first rank sees, on all ranks: files may change between two looks."""
        seen: T | None = look() if self.rank == 0 else None
        return cast("T", self.communicator.of_first_rank(seen))

    def joined(self, own: Mapping[int, T]) -> dict[int, T]:
        """The results of all ranks, each of which has some of them by their numbers."""
        if self.number == 1:
            return dict(own)
        parts: list[Any] = [None] * self.number
        dist.all_gather_object(parts, dict(own))
        return {number: value for part in parts for number, value in part.items()}


@contextlib.contextmanager
def evaluating_ranks(process: ProcessRank, device: torch.device, shared: Path) -> Iterator[Ranks]:
    """Join the processes of this job, which may be one. `shared` is a folder that all their nodes see."""
    with joined_ranks(process, 1, device, shared) as communicator:
        yield Ranks(communicator)
