"""Which jobs to submit now, and which pending ones to cancel: a pure function of state, limits and time.

Widest first. A run that does not fit now keeps a reservation at the earliest time it could start; narrower ones go
before it only where they end by then or leave its nodes free (EASY backfill), so that none starves. Runs smaller than a
node that is handed out whole are packed together: of one width first, narrower ones into what is left. Runs of one
shape differ in length only, so a tick looks at the shapes, not at every run.

Of several allocations with room each run takes the one where it will end first, by its length and the waits that the
sweep has seen there; of those that differ by less than a minute the cheapest by GPU-hour, then the one where fewest of
the sweep's jobs wait. A job that has waited moves where room is left after that and none of the sweep's jobs waits: it
is cancelled while it is pending and submitted anew, which counts as no attempt. It moves once it has waited as long as
the last one did in its new place, and twice as long as when jobs last left its own, so that none goes back and forth.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sweeps.engine.capacity import MAX_GPU_HOURS, Budget, Capacity, amount_of
from sweeps.engine.cluster import JobRequest, Limit, Resource
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.job_memory import job_memory
from sweeps.engine.quota import NOTHING, Verdict, VerdictKind, best_of, by_place, held_by_sweep, job_shape, verdict
from sweeps.engine.run_states import Queue, RunState
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.wall_time import indivisible_minutes, job_minutes, minutes_left
from sweeps.engine.work import Attempt, Work, expected_minutes
from sweeps.engine.works import Shape, shape_of

_SAME_END_MINUTES = 1.0
"""Ends that differ by no more are as good as each other."""
_LEAST_WAIT_MINUTES = 5.0
"""A pending job keeps its place in a queue at least so long."""
AVOID_NODE_SECONDS = 6 * 3600.0
"""How long a node is avoided after it failed a run, or was seen to be slow."""


@dataclass(frozen=True)
class Move:
    """A pending job to be cancelled, since another allocation has room for it."""

    tag: str
    to: str
    waited_minutes: float
    """The longest wait of the sweep's jobs that are pending where it is."""


@dataclass(frozen=True)
class Plan:
    """What to submit now, and why other runs have to wait."""

    submit: list[JobRequest] = field(default_factory=list)
    cancel_pending: list[str] = field(default_factory=list)
    """Tags of pending jobs that must not start: a limit was lowered, or others now use what they were to get."""
    moves: list[Move] = field(default_factory=list)
    verdicts: dict[Shape, Verdict] = field(default_factory=dict)
    """Why the longest waiting run of each shape cannot start now."""
    unschedulable: bool = False
    """Nothing is in flight, and no limit would let anything start even if nobody else used the cluster."""

    def verdict_of(self, run: RunState) -> Verdict | None:
        return self.verdicts.get(shape_of(run.work)) if run.is_waiting else None


class _Candidates:
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


def decide(
    state: SweepState,
    cluster: ClusterConfig,
    limits: Mapping[str, Sequence[Limit]],
    now: float,
    minutes_of: Callable[[Work], float] = expected_minutes,
) -> Plan:
    """Return what to submit and what to cancel at `now` (Unix seconds).

    `limits` are by allocation; `minutes_of` is the newest estimate of a whole run's time.
    """
    capacities = _capacities(state, cluster, limits, now)
    cancel_pending = [tag for capacity in capacities for tag in _jobs_to_cancel(capacity, state)]
    if state.paused:
        return Plan(cancel_pending=cancel_pending)
    filling = _Filling(state, capacities, now, minutes_of)
    for shape in filling.shapes:
        filling.fill(shape)
    unschedulable = not filling.submit and _is_unschedulable(state, capacities)
    moves = list(_moves(state, capacities, now, cancel_pending))
    return Plan(filling.submit, cancel_pending, moves, filling.verdicts, unschedulable)


def _capacities(
    state: SweepState, cluster: ClusterConfig, limits: Mapping[str, Sequence[Limit]], now: float
) -> list[Capacity]:
    held = held_by_sweep(cluster, state)
    committed = sum(amount.of.get(Resource.GPU_HOURS, 0.0) for amount in held.values())
    budget = Budget(state.own_limits.get(MAX_GPU_HOURS, math.inf), committed)
    return [
        Capacity(
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


class _Filling:
    """Fills the allocations with jobs, one shape of runs after the other."""

    def __init__(
        self, state: SweepState, capacities: Sequence[Capacity], now: float, minutes_of: Callable[[Work], float]
    ) -> None:
        self.state, self.capacities, self.now, self.minutes_of = state, capacities, now, minutes_of
        self.shapes = sorted(state.waiting, key=_width_first)
        self.submit: list[JobRequest] = []
        self.verdicts: dict[Shape, Verdict] = {}
        self._candidates = {shape: _Candidates(state.waiting[shape], now) for shape in self.shapes}
        self._excluded = _excluded_nodes(state, now)

    def fill(self, shape: Shape) -> None:
        """Adds jobs for the runs of that shape, the longest first, until no allocation has capacity for one."""
        candidates = self._candidates[shape]
        while head := candidates.first(1):
            minutes = head[0].work.need.expected_minutes
            wall = indivisible_minutes(head[0].work)
            answers = {one.allocation.name: one.verdict_on(shape, minutes, self.now, wall) for one in self.capacities}
            free = [one for one in self.capacities if answers[one.allocation.name].kind is VerdictKind.RUN]
            if free:
                self._add_job(shape, minutes, _first_to_end(shape, minutes, free))
                continue
            self.verdicts.setdefault(shape, _combined(answers))
            if wall > max(one.longest_wall_minutes(shape) for one in self.capacities):
                # It waits for nothing; of its shape there may be runs that ask for less.
                candidates.skip_to(math.nextafter(minutes, 0.0))
                continue
            _reserve(shape, self.capacities, self.state, self.now)
            longest = max(one.longest(shape, self.now) for one in self.capacities)
            if longest <= 0.0:
                return
            candidates.skip_to(min(longest, math.nextafter(minutes, 0.0)))

    def _add_job(self, shape: Shape, minutes: float, capacity: Capacity) -> None:
        """One job of as many runs as fit into it: of that shape first, then narrower ones that end no later."""
        longest = capacity.longest_wall_minutes(shape)
        first = self._candidates[shape].first(capacity.slots(shape))
        pack = [run for run in first if indivisible_minutes(run.work) <= longest]
        self._candidates[shape].remove(pack)
        for narrower in self.shapes[self.shapes.index(shape) + 1 :]:
            more = self._candidates[narrower].not_longer_than(minutes, capacity.slots_left(pack, narrower))
            more = [run for run in more if indivisible_minutes(run.work) <= longest]
            self._candidates[narrower].remove(more)
            pack += more
        tag = f"{self.state.prefix}{self.state.num_jobs + len(self.submit) + 1:06d}"
        request = _request(tag, pack, capacity, self._excluded, self.minutes_of)
        capacity.add(request, self.now + 60 * minutes)
        self.submit.append(request)


def _first_to_end(shape: Shape, minutes: float, capacities: Sequence[Capacity]) -> Capacity:
    """The allocation, of several that have room, for a run of that shape and length."""
    ends = [one.minutes_to_end(shape, minutes) for one in capacities]
    equal = [n for n, end in enumerate(ends) if end <= min(ends) + _SAME_END_MINUTES]
    best = min(equal, key=lambda n: (capacities[n].allocation.highest_price, capacities[n].num_queued, ends[n]))
    return capacities[best]


def _moves(
    state: SweepState, capacities: Sequence[Capacity], now: float, cancel_pending: Sequence[str]
) -> Iterator[Move]:
    """Pending jobs, the newest first, for which another allocation has room."""
    waits = {one.allocation.name: _pending_minutes(one.allocation.name, state, now) for one in capacities}
    without_queue = [one for one in capacities if not one.num_queued]
    for job in reversed(state.jobs.values()):
        if job.started_at is not None or job.job_id is None or job.cancel_pending or job.cancelling:
            continue
        here, request = job.request.allocation, job.request
        waited = waits.get(here, 0.0)
        if job.tag in cancel_pending or waited < max(_LEAST_WAIT_MINUTES, 2 * state.left_after.get(here, 0.0)):
            continue
        works = [attempt.work for attempt in request.attempts]
        shape = shape_of(works[0])
        minutes, wall = job_minutes(request), max(indivisible_minutes(work) for work in works)
        room = [
            one
            for one in without_queue
            if one.allocation.name != here
            and waited >= _latest_wait(one.allocation.name, state)
            and one.slots(shape) >= len(works)
            and one.verdict_on(shape, minutes, now, wall).kind is VerdictKind.RUN
        ]
        if room:
            to = _first_to_end(shape, minutes, room)
            to.add(request, now + 60 * minutes)
            yield Move(job.tag, to.allocation.name, waited)


def _latest_wait(allocation: str, state: SweepState) -> float:
    """Minutes that the job waited that started there last, or those that made jobs leave, whichever are more."""
    started = [
        (job.started_at, (job.started_at - job.intended_at) / 60)
        for job in state.jobs.values()
        if job.request.allocation == allocation and job.started_at is not None
    ]
    return max(max(started, default=(0.0, 0.0))[1], state.left_after.get(allocation, 0.0))


def _pending_minutes(allocation: str, state: SweepState, now: float) -> float:
    """The longest wait of the sweep's jobs that are pending there."""
    jobs = [job for job in state.jobs.values() if job.request.allocation == allocation and job.started_at is None]
    return max(((now - job.intended_at) / 60 for job in jobs), default=0.0)


def _queue_minutes(allocation: str, state: SweepState, now: float) -> float:
    """The longest wait in the queue of the sweep's jobs that are pending or running, or have left for another one."""
    waits = [
        (now if job.started_at is None else job.started_at) - job.intended_at
        for job in state.jobs.values()
        if job.request.allocation == allocation
    ]
    return max(max(waits, default=0.0) / 60, state.left_after.get(allocation, 0.0))


def _jobs_to_cancel(capacity: Capacity, state: SweepState) -> Iterator[str]:
    """Jobs that wait in the cluster's queue, the newest first, until those that are left keep the user's own limits;
    and each that no limit of the cluster would ever let start."""
    held = capacity.held
    for job in reversed(state.jobs.values()):
        request = job.request
        if request.allocation != capacity.allocation.name or job.started_at is not None:
            continue
        amount = amount_of(request)
        if job.cancel_pending or job.cancelling:
            held = held - amount
        elif verdict(amount, capacity.limits, NOTHING).kind is VerdictKind.NEVER or any(
            limit.resource in (Resource.NODES, Resource.GPUS, Resource.CPUS, Resource.JOBS)
            and not limit.enforced
            and held.of.get(limit.resource, 0.0) + limit.used_by_others > limit.most
            for limit in capacity.limits
        ):
            held = held - amount
            yield job.tag


def _width_first(shape: Shape) -> int:
    nodes, gpus, _ = shape
    return -nodes * max(1, gpus)


def _combined(answers: Mapping[str, Verdict]) -> Verdict:
    """NEVER only where every allocation says so."""
    return best_of(
        [
            replace(answer, why=f"{name}: {answer.why}") if answer.kind is VerdictKind.NEVER else answer
            for name, answer in answers.items()
        ]
    )


def _is_unschedulable(state: SweepState, capacities: Sequence[Capacity]) -> bool:
    if state.jobs:
        return False
    shortest = {shape: queue.shortest() for shape, queue in state.waiting.items() if len(queue)}
    return bool(shortest) and not any(
        capacity.would_ever_take(shape, run.work.need.expected_minutes, indivisible_minutes(run.work))
        for shape, run in shortest.items()
        for capacity in capacities
    )


def _reserve(shape: Shape, capacities: Sequence[Capacity], state: SweepState, now: float) -> None:
    """Gives the first run that waits for nodes the earliest start there is, in the allocation that offers it."""
    if any(capacity.reserved_at < math.inf for capacity in capacities):
        return
    best: tuple[float, float, Capacity] | None = None
    for capacity in capacities:
        if capacity.would_ever_take(shape, 0.0) or state.jobs:
            start = _earliest_start(shape[0], capacity, state, now)
            if start is not None and (best is None or start[0] < best[0]):
                best = (*start, capacity)
    if best is not None:
        best[2].reserved_at, best[2].spare_nodes = best[0], best[1]


def _earliest_start(nodes: int, capacity: Capacity, state: SweepState, now: float) -> tuple[float, float] | None:
    """When that many nodes will be free under the tightest node limit, and how many more then; None where it is not
    for nodes that it waits."""
    found = [_earliest_start_in(place, nodes, capacity, state, now) for place in by_place(capacity.limits)]
    return min((start for start in found if start is not None), key=lambda start: start[0], default=None)


def _earliest_start_in(
    place: Sequence[Limit], nodes: int, capacity: Capacity, state: SweepState, now: float
) -> tuple[float, float] | None:
    limits = [limit for limit in place if limit.resource is Resource.NODES]
    if not limits or nodes > min(limit.most for limit in limits):
        return None
    free = min(limit.most - limit.used_by_others for limit in limits) - capacity.held.of.get(Resource.NODES, 0.0)
    if free >= nodes:
        return None
    ends = sorted(
        ((now if job.started_at is None else job.started_at) + 60 * job_minutes(job.request), job.request.nodes)
        for job in state.jobs.values()
        if job.request.allocation == capacity.allocation.name
    )
    at = now
    for end, freed in ends:
        if free >= nodes:
            break
        free, at = free + freed, max(at, end)
    return (at, free - nodes) if free >= nodes else None


def _request(
    tag: str, pack: Sequence[RunState], capacity: Capacity, excluded: Sequence[str], minutes_of: Callable[[Work], float]
) -> JobRequest:
    nodes, gpus, cpus = job_shape(shape_of(pack[0].work), capacity.allocation)
    expected = [minutes_left(run, minutes_of) for run in pack]
    memory, can_grow = job_memory(pack, capacity.allocation)
    return JobRequest(
        tag=tag,
        allocation=capacity.allocation.name,
        attempts=tuple(
            Attempt(run.work.expecting(minutes), next_attempt_number(run), run.adjustments)
            for run, minutes in zip(pack, expected, strict=True)
        ),
        nodes=nodes,
        gpus_per_node=gpus,
        cpus_per_node=cpus,
        wall_minutes=capacity.wall_minutes(pack, expected),
        memory_gigabytes=memory,
        memory_can_grow=can_grow,
        excluded_nodes=tuple(excluded[: capacity.most_excluded(nodes)]),
    )


def next_attempt_number(run: RunState) -> int:
    return run.attempts[-1].number + 1 if run.attempts else 1


def _excluded_nodes(state: SweepState, now: float) -> tuple[str, ...]:
    """Nodes with recent failures, the newest failures first."""
    recent = {
        node: failures.times[-1]
        for node, failures in state.node_failures.items()
        if failures.times and now - failures.times[-1] < AVOID_NODE_SECONDS
    }
    return tuple(sorted(sorted(recent), key=lambda node: -recent[node]))
