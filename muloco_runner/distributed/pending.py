"""Collectives that have been started, each with what to do with its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from muloco_runner.distributed.collectives import Transfer

PendingTransfer = tuple[Transfer, Callable[[], None]]
"""A started collective, and what to do when it has ended."""


class PendingTransfers:
    """Finishes transfers in the order in which they were added, one round behind: while one round is under way, the
    next is computed. More rounds at once would only hold more memory."""

    def __init__(self) -> None:
        self._round: Sequence[PendingTransfer] = ()

    def add_round(self, *transfers: PendingTransfer) -> None:
        """Add what has been started since the last round, possibly nothing, and finish the round before."""
        previous, self._round = self._round, transfers
        for transfer, finish in previous:
            transfer.wait()
            finish()

    def finish(self) -> None:
        """Finish all that is pending."""
        self.add_round()
