"""A count over all ranks that travels beside the next step, so that no step waits for a slow network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from muloco_runner.distributed.collectives import Transfer
from muloco_runner.distributed.topology import Communicator


class Ballot:
    """What the ranks must decide alike. All of them call both methods at the same steps."""

    def __init__(self, communicator: Communicator, own: Callable[[], list[int]]) -> None:
        """`own` tells what this rank has to say at the moment: always as many numbers."""
        self._communicator, self._own = communicator, own
        self._sent: tuple[Tensor, Transfer] | None = None

    def send(self) -> None:
        """To all ranks, what is so now."""
        if self._communicator.topology.num_ranks > 1:
            votes = torch.tensor(self._own(), dtype=torch.int32)
            self._sent = votes, self._communicator.begin_sum_over_ranks(votes)

    def count(self) -> list[int]:
        """Sums over the ranks: of what was sent last, or, where there is one rank, of what is so now."""
        if self._sent is None:
            return self._own()
        votes, transfer = self._sent
        self._sent = None
        transfer.wait()
        counts: list[int] = votes.tolist()
        return counts
