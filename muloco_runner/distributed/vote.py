"""Votes of all ranks on control flags (stop, save, ...): an asynchronous all-reduce beside the next step.

No step waits for a slow network, and all ranks decide alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from muloco_runner.distributed.collectives import Transfer
from muloco_runner.distributed.communicator import Communicator


class ControlFlagVote:
    """Sums of each rank's control flags. All ranks call both methods at the same steps."""

    def __init__(self, communicator: Communicator, own_flags: Callable[[], list[int]]) -> None:
        """`own_flags` returns this rank's flags as they are now: always as many numbers."""
        self._communicator, self._own_flags = communicator, own_flags
        self._pending: tuple[Tensor, Transfer] | None = None

    def start(self) -> None:
        """Start to sum the flags over the ranks, as they are now."""
        if self._communicator.topology.num_ranks > 1:
            flags = torch.tensor(self._own_flags(), dtype=torch.int32)
            self._pending = flags, self._communicator.begin_sum_over_ranks(flags)

    def result(self) -> list[int]:
        """Return the sums over the ranks of the flags at the last `start`; on one rank, the flags as they are now."""
        if self._pending is None:
            return self._own_flags()
        flags, transfer = self._pending
        self._pending = None
        transfer.wait()
        sums: list[int] = flags.tolist()
        return sums
