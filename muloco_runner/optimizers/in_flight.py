"""Collectives under way, each with what is to be done with its result."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from muloco_runner.collectives import Transfer


class InFlight:
    """Results are taken in the order of `push`, one behind: while one travels, the next is computed.

    More under way would only hold more memory.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[Transfer, Callable[[], None]]] = deque()

    def push(self, transfer: Transfer, finish: Callable[[], None]) -> None:
        """Adds a collective; ends the one before."""
        self._queue.append((transfer, finish))
        if len(self._queue) > 1:
            self._end_oldest()

    def flush(self) -> None:
        """Ends all."""
        while self._queue:
            self._end_oldest()

    def _end_oldest(self) -> None:
        transfer, finish = self._queue.popleft()
        transfer.wait()
        finish()
