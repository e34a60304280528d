"""Collectives under way, each with what is to be done with its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from muloco_runner.distributed.collectives import Transfer

Travelling = tuple[Transfer, Callable[[], None]]
"""A collective, and what to do when it has ended."""


class InFlight:
    """Results are taken in the order of `push`, one round behind: while one travels, the next is computed.

    More under way would only hold more memory.
    """

    def __init__(self) -> None:
        self._round: Sequence[Travelling] = ()

    def push(self, *travelling: Travelling) -> None:
        """Adds a round: what has begun to travel since the last one, possibly nothing. Ends the one before."""
        last, self._round = self._round, travelling
        for transfer, finish in last:
            transfer.wait()
            finish()

    def flush(self) -> None:
        """Ends all."""
        self.push()
