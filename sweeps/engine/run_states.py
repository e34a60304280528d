"""The runs of a sweep: each with what has been tried, and all of them in one mapping.

A run is made when it is first asked for, from its work and from what a snapshot says of it: a look at a sweep of a
hundred thousand runs needs few of them.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from sweeps.engine.policy import RULES, Cause
from sweeps.engine.work import Work
from sweeps.engine.works import Shape, Works


@dataclass
class AttemptState:
    number: int
    tag: str
    allocation: str
    gpus: int
    intended_at: float
    started_at: float | None = None
    ended_at: float | None = None
    nodes: tuple[str, ...] = ()
    cause: Cause | None = None
    """None while it is in flight."""
    detail: str = ""
    """One line on how it ended."""
    advanced: bool = False
    """Whether it left a newer checkpoint than there was before."""
    checkpoint_step: int = 0
    minutes_left: float | None = None
    """After it, at the speed that it measured; None where it did not get so far."""
    hours: dict[str, float] = field(default_factory=dict)
    """What it was charged, by kind (`sweeps.engine.charges`); empty for attempts that earlier versions recorded."""

    @property
    def minutes(self) -> float:
        """Actual duration of an attempt that has ended."""
        if self.started_at is None or self.ended_at is None:
            return 0.0
        return max(0.0, self.ended_at - self.started_at) / 60


@dataclass
class RunState:
    """One piece of work and what has been tried."""

    work: Work
    position: int = 0
    """Its index in the sweep: of equally long runs the first goes first."""
    attempts: list[AttemptState] = field(default_factory=list)
    released_after: int = 0
    """Attempts up to this number no longer count against it: someone has said `retry`."""
    done: bool = False
    held: str | None = None
    """Why nothing more is tried."""
    not_before: float = 0.0
    """Unix seconds: the backoff after its last attempt."""

    @property
    def in_flight(self) -> bool:
        return bool(self.attempts) and self.attempts[-1].cause is None

    @property
    def is_waiting(self) -> bool:
        return not self.done and self.held is None and not self.in_flight

    @property
    def is_held_by_attempt(self) -> bool:
        """Whether it is held for how its newest attempt ended, not for what has happened since."""
        last = self.attempts[-1] if self.attempts else None
        if self.held is None or last is None or last.cause is None:
            return False
        return self.held.startswith(f"{last.cause.value}: ") or bool(last.detail and last.detail in self.held)

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped early by its losses (`sweeps.engine.tuning.halving`)."""
        return bool(self.attempts) and self.attempts[-1].cause is Cause.HALVED and self.is_held_by_attempt

    @property
    def status(self) -> str:
        """One of `STATUSES`."""
        if self.done:
            return "done"
        if self.held is not None:
            return "stopped" if self.is_stopped else "held"
        if self.in_flight:
            return "running" if self.attempts[-1].started_at is not None else "submitted"
        return "waiting"

    @property
    def adjustments(self) -> dict[str, int]:
        """What the next attempt's entry is given besides its arguments (`Attempt.adjustments`)."""
        causes = [attempt.cause for attempt in self.attempts if attempt.cause and RULES[attempt.cause].adjusts]
        parameters = self.work.adapter.adjustments
        return dict(Counter(parameters[cause.value] for cause in causes if cause.value in parameters))

    @property
    def minutes(self) -> float:
        """Actual duration of all attempts that have ended."""
        return sum(attempt.minutes for attempt in self.attempts)

    def advances(self, checkpoint_step: int) -> bool:
        """Whether a checkpoint that its newest attempt has left is newer than what there was before."""
        first = self.work.trunk.step if self.work.trunk is not None else 0
        return checkpoint_step > max((earlier.checkpoint_step for earlier in self.attempts[:-1]), default=first)

    def to_line(self) -> bytes:
        """What its work does not say, as one line of JSON."""
        attempts = [[_plain(getattr(attempt, name)) for name in _ATTEMPT_FIELDS] for attempt in self.attempts]
        values = [self.work.name, attempts, self.released_after, self.done, self.held, self.not_before]
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def from_line(cls, work: Work, position: int, line: bytes) -> RunState:
        name, attempts, *others = json.loads(line)
        assert name == work.name
        return cls(work, position, [_attempt(values) for values in attempts], *others)


STATUSES = ("done", "running", "submitted", "waiting", "held", "stopped")
_ATTEMPT_FIELDS = tuple(f.name for f in fields(AttemptState))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Cause) else value


def _attempt(values: Sequence[Any]) -> AttemptState:
    attempt = AttemptState(*values)
    attempt.nodes = tuple(attempt.nodes)
    attempt.cause = Cause(attempt.cause) if attempt.cause is not None else None
    return attempt


class Runs(Mapping[str, RunState]):
    """Runs by name, in the sweep's order. `lines` are what a snapshot says, by name, of runs that have a history."""

    def __init__(self, works: Sequence[Work], lines: Mapping[str, bytes] | None = None) -> None:
        self.works = Works.of(works).copy()
        """Those of the sweep's file, and behind them the runs that were added."""
        self._positions = {name: position for position, name in enumerate(self.works.names)}
        self._made: dict[int, RunState] = {}
        self._lines: dict[str, bytes | None] = dict(lines or {})
        """None where the run has changed since its line was made."""
        self._unsaved: dict[str, None] = {}
        """Names of runs that have changed since their lines were last saved."""
        self._known = {self._positions[name] for name in self._lines if name in self._positions}
        """Positions of the runs that have a line."""

    def __getitem__(self, name: str) -> RunState:
        return self.at(self._positions[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __contains__(self, name: object) -> bool:
        return name in self._positions

    def at(self, position: int) -> RunState:
        run = self._made.get(position)
        if run is None:
            work = self.works[position]
            line = self._lines.get(work.name)
            run = RunState(work, position) if line is None else RunState.from_line(work, position, line)
            self._made[position] = run
        return run

    def add(self, work: Work) -> RunState:
        """One more, at the sweep's end."""
        self._positions[work.name] = len(self._positions)
        self.works.add(work)
        return self[work.name]

    def is_known(self, name: str) -> bool:
        """Whether more is known of it than its work."""
        return name in self._lines

    def with_history_at(self, positions: Iterable[int]) -> set[int]:
        """Return those of the positions whose runs have a history."""
        return self._known.intersection(positions)

    def with_history(self) -> Iterator[RunState]:
        """Runs of which more is known than their work."""
        return (self[name] for name in list(self._lines))

    def untouched(self) -> Iterator[int]:
        """Positions of the runs of which nothing is known but their work."""
        return (position for name, position in self._positions.items() if name not in self._lines)

    def changes(self, run: RunState) -> None:
        """Must be called before a run changes."""
        self._lines[run.work.name] = self._unsaved[run.work.name] = None
        self._known.add(run.position)

    def note_saved(self) -> None:
        """Must be called once all lines, as they are, have been saved."""
        self._unsaved.clear()

    def lines(self, unsaved_alone: bool = False) -> Iterator[bytes]:
        """Lines of the runs that have a history, or of those that have changed since the last lines were saved;
        unchanged ones are not encoded again."""
        for name in self._unsaved if unsaved_alone else self._lines:
            known = self._lines[name]
            line = self[name].to_line() if known is None else known
            self._lines[name] = line
            yield line


class Queue:
    """Runs of one shape that wait, the longest first."""

    def __init__(self, runs: Runs, keys: Iterable[tuple[float, int]] = ()) -> None:
        self._runs = runs
        self._keys = sorted(keys)
        """Expected minutes, and the position with its sign turned: read from the end."""

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[RunState]:
        return self.not_longer_than(float("inf"))

    def positions(self) -> Iterator[int]:
        return (-position for _, position in self._keys)

    def add(self, run: RunState) -> None:
        bisect.insort(self._keys, _key(run))

    def remove(self, run: RunState) -> None:
        index = bisect.bisect_left(self._keys, _key(run))
        assert self._keys[index] == _key(run)
        del self._keys[index]

    def shortest(self) -> RunState:
        return self._runs.at(-self._keys[0][1])

    def longest(self) -> RunState:
        return self._runs.at(-self._keys[-1][1])

    def not_longer_than(self, minutes: float) -> Iterator[RunState]:
        """The longest of them first. The queue must not change meanwhile."""
        for index in range(bisect.bisect_right(self._keys, (minutes, 0)) - 1, -1, -1):
            yield self._runs.at(-self._keys[index][1])


def _key(run: RunState) -> tuple[float, int]:
    return run.work.need.expected_minutes, -run.position


def queues(runs: Runs, waiting: Iterable[int]) -> dict[Shape, Queue]:
    """Queues of the runs at those positions; no `RunState` is made for it."""
    keys: dict[Shape, list[tuple[float, int]]] = {}
    works = runs.works
    for position in waiting:
        keys.setdefault(works.shape(position), []).append((works.minutes(position), -position))
    return {shape: Queue(runs, found) for shape, found in keys.items()}


class Candidates:
    """The runs of one queue that may start by now, the longest first, seen a few at a time."""

    def __init__(self, queue: Queue, now: float) -> None:
        self.queue, self.now = queue, now
        self._removed: set[int] = set()
        self.skip_to(math.inf)

    def skip_to(self, minutes: float) -> None:
        """Continues with the runs that are not longer than that."""
        self._seen: deque[RunState] = deque()
        self._rest: Iterator[RunState] = self._ready(minutes)

    def first(self, count: int) -> list[RunState]:
        while self._seen and self._seen[0].position in self._removed:
            self._seen.popleft()
        while len(self._seen) < count:
            run = next(self._rest, None)
            if run is None:
                break
            self._seen.append(run)
        return list(self._seen)[:count]

    def not_longer_than(self, minutes: float, count: int) -> list[RunState]:
        """Return up to `count` runs that are not longer than that, the longest of them first."""
        return list(itertools.islice(self._ready(minutes), count))

    def remove(self, runs: Sequence[RunState]) -> None:
        self._removed.update(run.position for run in runs)

    def _ready(self, minutes: float) -> Iterator[RunState]:
        for run in self.queue.not_longer_than(minutes):
            if run.not_before <= self.now and run.position not in self._removed:
                yield run
