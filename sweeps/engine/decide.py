"""Which jobs to submit now, and which to take back: a pure function of the sweep's state, the limits and the time.

Widest first. A run that does not fit now keeps a reservation at the earliest time it could start; narrower ones go
before it only where they end by then or leave its nodes free (EASY backfill), so that none starves. Runs smaller than a
node that is handed out whole are packed together: of one width first, narrower ones into what is left. Of several
allocations each run takes the one where it will be done first. Runs of one shape differ in length only, so a tick looks
at the shapes, not at every run.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sweeps.engine.capacity import MAX_GPU_HOURS, Budget, Room, amount_of
from sweeps.engine.cluster import JobRequest, Limit, Resource
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.quota import NOTHING, Verdict, VerdictKind, held_by_sweep, verdict
from sweeps.engine.run_states import Queue, RunState
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.wall_time import job_minutes, minutes_left
from sweeps.engine.work import Attempt, Work, expected_minutes
from sweeps.engine.works import Shape, shape_of

_STRIKE_SECONDS = 6 * 3600.0
"""A node that failed us is avoided for so long."""


@dataclass(frozen=True)
class Plan:
    """What to submit now, and what to say of the runs that are not."""

    submit: list[JobRequest] = field(default_factory=list)
    cancel_pending: list[str] = field(default_factory=list)
    """Tags of jobs that must not start any more: a limit was lowered, or others have taken what they were to get."""
    verdicts: dict[Shape, Verdict] = field(default_factory=dict)
    """On the longest waiting run of each shape that cannot start now."""
    unschedulable: bool = False
    """Nothing is in flight, and no limit would let anything start even if nobody else used the cluster."""

    def verdict_of(self, run: RunState) -> Verdict | None:
        return self.verdicts.get(shape_of(run.work)) if run.is_waiting else None


class _Line:
    """The runs of one queue that may start by now, the longest first, seen a few at a time."""

    def __init__(self, queue: Queue, now: float) -> None:
        self.queue, self.now = queue, now
        self._taken: set[int] = set()
        self.skip_to(math.inf)

    def skip_to(self, minutes: float) -> None:
        """On to the runs that are not longer than that."""
        self._seen: deque[RunState] = deque()
        self._rest: Iterator[RunState] = self._ready(minutes)

    def first(self, count: int) -> list[RunState]:
        while self._seen and self._seen[0].position in self._taken:
            self._seen.popleft()
        while len(self._seen) < count:
            run = next(self._rest, None)
            if run is None:
                break
            self._seen.append(run)
        return list(self._seen)[:count]

    def not_longer_than(self, minutes: float, count: int) -> list[RunState]:
        """Up to so many that would be done by then, the longest of them."""
        return list(itertools.islice(self._ready(minutes), count))

    def take(self, runs: Sequence[RunState]) -> None:
        self._taken.update(run.position for run in runs)

    def _ready(self, minutes: float) -> Iterator[RunState]:
        for run in self.queue.not_longer_than(minutes):
            if run.not_before <= self.now and run.position not in self._taken:
                yield run


def decide(
    state: SweepState,
    cluster: ClusterConfig,
    limits: Mapping[str, Sequence[Limit]],
    now: float,
    minutes_of: Callable[[Work], float] = expected_minutes,
) -> Plan:
    """What to submit at `now` (Unix seconds). `minutes_of` is the newest estimate of a whole run's time."""
    held = held_by_sweep(cluster, state)
    spoken_for = sum(amount.of.get(Resource.GPU_HOURS, 0.0) for amount in held.values())
    budget = Budget(state.own_limits.get(MAX_GPU_HOURS, math.inf), spoken_for)
    rooms = [
        Room(
            allocation,
            limits.get(allocation.name, ()),
            held[allocation.name],
            budget,
            state.defer_until.get(allocation.name, 0.0),
            _queue_minutes(allocation.name, state, now),
            sum(job.request.allocation == allocation.name and job.started_at is None for job in state.jobs.values()),
        )
        for allocation in cluster.allocations
    ]
    cancel_pending = [tag for room in rooms for tag in _too_many(room, state)]
    if state.paused:
        return Plan(cancel_pending=cancel_pending)
    excluded = _excluded_nodes(state, now)
    submit: list[JobRequest] = []
    verdicts: dict[Shape, Verdict] = {}
    shapes = sorted(state.waiting, key=_width_first)
    lines = {shape: _Line(state.waiting[shape], now) for shape in shapes}
    for shape in shapes:
        line = lines[shape]
        while head := line.first(1):
            minutes = head[0].work.need.expected_minutes
            answers = {room.allocation.name: room.answer(shape, minutes, now) for room in rooms}
            open_rooms = [room for room in rooms if answers[room.allocation.name].kind is VerdictKind.RUN]
            if not open_rooms:
                verdicts.setdefault(shape, _combined(answers))
                _reserve(shape, rooms, state, now)
                longest = max(r.longest(shape, now) for r in rooms)
                if longest <= 0.0:
                    break
                line.skip_to(min(longest, math.nextafter(minutes, 0.0)))
                continue
            room = min(open_rooms, key=lambda room: (room.minutes_to_end(minutes), room.num_queued))
            pack = line.first(room.places(shape))
            line.take(pack)
            for narrower in shapes[shapes.index(shape) + 1 :]:
                more = lines[narrower].not_longer_than(minutes, room.places_left(pack, narrower))
                lines[narrower].take(more)
                pack += more
            tag = f"{state.prefix}{state.num_jobs + len(submit) + 1:06d}"
            request = _request(tag, pack, room, excluded, minutes_of)
            room.take(request, now + 60 * minutes)
            submit.append(request)
    return Plan(submit, cancel_pending, verdicts, not submit and _is_unschedulable(state, rooms))


def _queue_minutes(allocation: str, state: SweepState, now: float) -> float:
    """The longest that a job of ours stands in the queue by now, or has stood there among those that run."""
    waits = [
        (now if job.started_at is None else job.started_at) - job.intended_at
        for job in state.jobs.values()
        if job.request.allocation == allocation
    ]
    return max(waits, default=0.0) / 60


def _too_many(room: Room, state: SweepState) -> Iterator[str]:
    """Jobs that wait in the cluster's queue, the newest first, until those that are left keep the user's own limits;
    and each that no limit of the cluster would ever let start."""
    held = room.held
    for job in reversed(state.jobs.values()):
        request = job.request
        if request.allocation != room.allocation.name or job.started_at is not None:
            continue
        amount = amount_of(request)
        if job.withdrawing or job.cancelling is not None:
            held = held - amount
        elif verdict(amount, room.limits, NOTHING).kind is VerdictKind.NEVER or any(
            limit.resource in (Resource.NODES, Resource.GPUS, Resource.CPUS, Resource.JOBS)
            and not limit.enforced
            and held.of.get(limit.resource, 0.0) + limit.used_by_others > limit.most
            for limit in room.limits
        ):
            held = held - amount
            yield job.tag


def _width_first(shape: Shape) -> int:
    nodes, gpus, _ = shape
    return -nodes * max(1, gpus)


def _combined(answers: Mapping[str, Verdict]) -> Verdict:
    """NEVER only where every allocation says so."""
    waits = [answer for answer in answers.values() if answer.kind is VerdictKind.WAIT]
    if waits:
        return waits[0]
    return Verdict(VerdictKind.NEVER, "; ".join(f"{name}: {answer.why}" for name, answer in answers.items()))


def _is_unschedulable(state: SweepState, rooms: Sequence[Room]) -> bool:
    if state.jobs:
        return False
    shortest = {shape: queue.shortest() for shape, queue in state.waiting.items() if len(queue)}
    return bool(shortest) and not any(
        room.would_ever_take(shape, run.work.need.expected_minutes) for shape, run in shortest.items() for room in rooms
    )


def _reserve(shape: Shape, rooms: Sequence[Room], state: SweepState, now: float) -> None:
    """Gives the first run that waits for nodes the earliest start there is, in the allocation that offers it."""
    if any(room.reserved_at < math.inf for room in rooms):
        return
    best: tuple[float, float, Room] | None = None
    for room in rooms:
        if room.would_ever_take(shape, 0.0) or state.jobs:
            start = _earliest_start(shape[0], room, state, now)
            if start is not None and (best is None or start[0] < best[0]):
                best = (*start, room)
    if best is not None:
        best[2].reserved_at, best[2].spare_nodes = best[0], best[1]


def _earliest_start(nodes: int, room: Room, state: SweepState, now: float) -> tuple[float, float] | None:
    """When that many nodes will be free under the tightest node limit, and how many more then; None where it is not
    for nodes that it waits."""
    limits = [limit for limit in room.limits if limit.resource is Resource.NODES]
    if not limits or nodes > min(limit.most for limit in limits):
        return None
    free = min(limit.most - limit.used_by_others for limit in limits) - room.held.of.get(Resource.NODES, 0.0)
    if free >= nodes:
        return None
    ends = sorted(
        ((now if job.started_at is None else job.started_at) + 60 * job_minutes(job.request), job.request.nodes)
        for job in state.jobs.values()
        if job.request.allocation == room.allocation.name
    )
    at = now
    for end, freed in ends:
        if free >= nodes:
            break
        free, at = free + freed, max(at, end)
    return (at, free - nodes) if free >= nodes else None


def _request(
    tag: str, pack: Sequence[RunState], room: Room, excluded: Sequence[str], minutes_of: Callable[[Work], float]
) -> JobRequest:
    nodes, gpus, cpus = room.job_shape(shape_of(pack[0].work))
    expected = [minutes_left(run, minutes_of) for run in pack]
    return JobRequest(
        tag=tag,
        allocation=room.allocation.name,
        attempts=tuple(
            Attempt(run.work.expecting(minutes), next_attempt_number(run), run.adjustments)
            for run, minutes in zip(pack, expected, strict=True)
        ),
        nodes=nodes,
        gpus_per_node=gpus,
        cpus_per_node=cpus,
        wall_minutes=room.wall_minutes(pack, expected),
        excluded_nodes=tuple(excluded[: room.most_excluded(nodes)]),
    )


def next_attempt_number(run: RunState) -> int:
    return run.attempts[-1].number + 1 if run.attempts else 1


def _excluded_nodes(state: SweepState, now: float) -> tuple[str, ...]:
    """Nodes that failed us lately, the newest failures first."""
    recent = {
        node: strikes.times[-1]
        for node, strikes in state.strikes.items()
        if strikes.times and now - strikes.times[-1] < _STRIKE_SECONDS
    }
    return tuple(sorted(sorted(recent), key=lambda node: -recent[node]))
