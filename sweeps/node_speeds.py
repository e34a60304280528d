"""How fast attempts are, by node: a node is slow where a run takes several times as long as its like elsewhere.

Compared are attempts on one node each (of several nodes nobody knows which is slow) that do the same kind of work in
jobs of the same shape. Speeds are differences between two readings of one attempt, so start-up does not count.
"""

from __future__ import annotations

import json
import statistics
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from sweeps.engine.cluster import JobRequest
from sweeps.engine.outcome import Headway
from sweeps.engine.work import Attempt, Work
from sweeps.engine.works import shape_of

LEAST_OTHERS = 3
"""So many like attempts on other nodes must have been measured before a node is called slow."""
_LEAST_SECONDS = 300.0
"""An attempt is measured over at least so long: a neighbour's burst, or a checkpoint, is no slow node."""
_MOST_ENDED = 100
"""Ended attempts of one kind that are remembered, the newest."""


@dataclass
class _Readings:
    """What one attempt has reported."""

    kind: Hashable
    node: str
    newest: Headway
    since: Headway | None = None
    """The first reading after its start-up: the first that differs from the one before."""

    def take(self, reading: Headway) -> None:
        if reading.done < self.newest.done:
            self.since = None
        elif self.since is None and reading.done > self.newest.done:
            self.since = reading
        self.newest = reading

    @property
    def speed(self) -> float | None:
        """Work a second; None where it has not been measured for long enough."""
        if self.since is None or self.newest.seconds - self.since.seconds < _LEAST_SECONDS:
            return None
        return (self.newest.done - self.since.done) / (self.newest.seconds - self.since.seconds)


class NodeSpeeds:
    """Speeds of a sweep's attempts, as one controller has seen them: another one begins anew."""

    def __init__(self, likeness: Callable[[Work], Hashable | None]) -> None:
        """`likeness` is equal for works that go equally fast on equal nodes; None where that is not known."""
        self._likeness = likeness
        self._running: dict[tuple[str, int], _Readings] = {}
        """By the work's name and the attempt's number."""
        self._kinds: dict[Hashable, set[tuple[str, int]]] = {}
        """Those that run, by kind."""
        self._ended: dict[Hashable, deque[tuple[str, float]]] = {}
        """Nodes and speeds of those that have ended, by kind."""

    def learn(self, request: JobRequest, attempt: Attempt, node: str, reading: Headway) -> None:
        """Take in what an attempt, which runs on that node alone, reports."""
        key = attempt.work.name, attempt.number
        known = self._running.get(key)
        if known is not None and known.node == node:
            known.take(reading)
            return
        likeness = self._likeness(attempt.work)
        if likeness is not None:
            adjustments = json.dumps(dict(attempt.adjustments), sort_keys=True)
            # Neighbours in the job share its node, and allocations differ in their hardware.
            kind = (likeness, shape_of(attempt.work), request.allocation, len(request.attempts), adjustments)
            self._running[key] = _Readings(kind, node, reading)
            self._kinds.setdefault(kind, set()).add(key)

    def times_slower(self, attempt: Attempt) -> float | None:
        """Return the median speed of its like on other nodes over its own; None where too few are known."""
        own = self._running.get((attempt.work.name, attempt.number))
        speed = own.speed if own is not None else None
        if own is None or speed is None:
            return None
        running = [self._running[key] for key in self._kinds[own.kind]]
        others = [one.speed for one in running if one.node != own.node and one.speed is not None]
        others += [ended for node, ended in self._ended.get(own.kind, ()) if node != own.node]
        if len(others) < LEAST_OTHERS or speed <= 0:
            return None
        return statistics.median(others) / speed

    def end(self, attempt: Attempt) -> None:
        """The attempt runs no more; its speed stays known."""
        key = attempt.work.name, attempt.number
        readings = self._running.pop(key, None)
        if readings is None:
            return
        self._kinds[readings.kind].discard(key)
        if readings.speed is not None:
            self._ended.setdefault(readings.kind, deque(maxlen=_MOST_ENDED)).append((readings.node, readings.speed))
