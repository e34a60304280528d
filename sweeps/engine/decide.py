"""Which jobs to submit now, and which pending ones to cancel: a pure function of state, limits and time.

Widest first. A run that does not fit now keeps a reservation at the earliest time it could start; narrower ones go
before it only where they end by then or leave its nodes free (EASY backfill), so that none starves. Runs smaller than a
node that is handed out whole are packed together: of one width first, narrower ones into what is left. Runs of one
shape differ in length only, so a tick looks at the shapes, not at every run.

Which of several allocations a run takes, and when a pending job moves, says `sweeps.engine.moves`. Runs that find no
room may be queued behind jobs that have (`sweeps.engine.successors`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sweeps.engine.capacity import MAX_GPU_HOURS, Budget, Capacity
from sweeps.engine.cluster import JobRequest, Limit, Resource
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.job_needs import indivisible_minutes, job_memory, minutes_left
from sweeps.engine.moves import Move, first_to_end, moves_of, queue_minutes
from sweeps.engine.quota import (
    NOTHING,
    Verdict,
    VerdictKind,
    amount_of,
    best_of,
    by_place,
    held_by_jobs,
    held_by_sweep,
    job_chains,
    job_shape,
    verdict,
)
from sweeps.engine.run_states import Candidates, RunState
from sweeps.engine.successors import (
    Ahead,
    Chain,
    begun_chain,
    finds_room,
    free_at,
    has_share_of_submissions,
    live_chains,
    unwanted_successors,
    within_share,
)
from sweeps.engine.sweep_state import SweepState, TrackedJob
from sweeps.engine.work import Attempt, Work, expected_minutes
from sweeps.engine.works import Shape, shape_of

AVOID_NODE_SECONDS = 6 * 3600.0
"""How long a node is avoided after it failed a run, or was seen to be slow."""
_CANDIDATES_BEHIND = 16
"""Runs of one shape that are looked at for each successor: few ask for more wall time than there is."""


@dataclass(frozen=True)
class Plan:
    """What to submit now, and why other runs have to wait."""

    submit: list[JobRequest] = field(default_factory=list)
    cancel_pending: list[str] = field(default_factory=list)
    """Tags of pending jobs that must not start: a limit was lowered, or others now use what they were to get; or
    successors, for the reasons that `sweeps.engine.successors` lists."""
    moves: list[Move] = field(default_factory=list)
    verdicts: dict[Shape, Verdict] = field(default_factory=dict)
    """Why the longest waiting run of each shape cannot start now."""
    unschedulable: bool = False
    """Nothing is in flight, and no limit would let anything start even if nobody else used the cluster."""
    due_at: float = math.inf
    """When the next successor will be due if nothing else happens; Unix seconds."""

    def verdict_of(self, run: RunState) -> Verdict | None:
        return self.verdicts.get(shape_of(run.work)) if run.is_waiting else None


def decide(
    state: SweepState,
    cluster: ClusterConfig,
    limits: Mapping[str, Sequence[Limit]],
    now: float,
    minutes_of: Callable[[Work], float] = expected_minutes,
    ahead: Ahead | None = None,
) -> Plan:
    """Return what to submit and what to cancel at `now` (Unix seconds).

    `limits` are by allocation; `minutes_of` is the newest estimate of a whole run's time; without `ahead` no successors
    are queued.
    """
    capacities = _capacities(state, cluster, limits, now)
    too_many = [tag for capacity in capacities for tag in _jobs_to_cancel(capacity, state)]
    cancel_pending = [*too_many, *(tag for tag in unwanted_successors(state) if tag not in too_many)]
    if state.paused:
        return Plan(cancel_pending=cancel_pending)
    filling = _Filling(state, capacities, now, minutes_of)
    for shape in filling.shapes:
        filling.fill(shape)
    unschedulable = not filling.submit and _is_unschedulable(state, capacities)
    queue = _QueueBehind(filling, ahead) if ahead is not None else None
    if queue is not None:
        queue.plan(cancel_pending)
        cancel_pending += queue.withdraw
    moves = list(moves_of(state, capacities, now, cancel_pending))
    due_at = queue.due_at if queue is not None else math.inf
    return Plan(filling.submit, cancel_pending, moves, filling.verdicts, unschedulable, due_at)


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
            queue_minutes(allocation.name, state, now),
            sum(
                job.request.allocation == allocation.name and job.started_at is None and not job.is_behind
                for job in state.jobs.values()
            ),
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
        self._candidates = {shape: Candidates(state.waiting[shape], now) for shape in self.shapes}
        self._excluded = _excluded_nodes(state, now)

    def has_candidates(self) -> bool:
        return any(candidates.first(1) for candidates in self._candidates.values())

    def fill(self, shape: Shape) -> None:
        """Adds jobs for the runs of that shape, the longest first, until no allocation has capacity for one."""
        candidates = self._candidates[shape]
        while head := candidates.first(1):
            minutes = head[0].work.need.expected_minutes
            wall = indivisible_minutes(head[0].work)
            answers = {one.allocation.name: one.verdict_on(shape, minutes, self.now, wall) for one in self.capacities}
            free = [one for one in self.capacities if answers[one.allocation.name].kind is VerdictKind.RUN]
            if free:
                self._add_job(shape, minutes, first_to_end(shape, minutes, free))
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

    def behind(self, chain: Chain, capacity: Capacity, ahead: Ahead) -> JobRequest | None:
        """Adds a job of the widest and longest runs that may follow that chain; None where none may."""
        for shape in self.shapes:
            if not chain.takes(job_shape(shape, capacity.allocation)):
                continue
            longest = capacity.longest_behind(shape, chain.free_at, self.now)
            wall = min(longest, capacity.longest_wall_minutes(shape))
            candidates = self._candidates[shape].not_longer_than(longest, _CANDIDATES_BEHIND) if longest > 0.0 else ()
            run = next((run for run in candidates if indivisible_minutes(run.work) <= wall), None)
            if run is not None:
                pack = self._pack(shape, run.work.need.expected_minutes, capacity, wall)
                after = tuple(request.tag for request in chain.requests)
                request = replace(self._request(pack, capacity), after=after)
                chain.add(request, ahead)
                capacity.add_behind(request)
                self.submit.append(request)
                return request
        return None

    def _add_job(self, shape: Shape, minutes: float, capacity: Capacity) -> None:
        pack = self._pack(shape, minutes, capacity, capacity.longest_wall_minutes(shape))
        request = self._request(pack, capacity)
        capacity.add(request, self.now + 60 * minutes)
        self.submit.append(request)

    def _request(self, pack: Sequence[RunState], capacity: Capacity) -> JobRequest:
        tag = f"{self.state.prefix}{self.state.num_jobs + len(self.submit) + 1:06d}"
        return _request(tag, pack, capacity, self._excluded, self.minutes_of)

    def _pack(self, shape: Shape, minutes: float, capacity: Capacity, longest: float) -> list[RunState]:
        """As many runs as fit into one job: of that shape and length first, then narrower ones that end no later."""
        first = self._candidates[shape].not_longer_than(minutes, capacity.slots(shape))
        pack = [run for run in first if indivisible_minutes(run.work) <= longest]
        self._candidates[shape].remove(pack)
        for narrower in self.shapes[self.shapes.index(shape) + 1 :]:
            more = self._candidates[narrower].not_longer_than(minutes, capacity.slots_left(pack, narrower))
            more = [run for run in more if indivisible_minutes(run.work) <= longest]
            self._candidates[narrower].remove(more)
            pack += more
        return pack


class _QueueBehind:
    """Plans the successors, once every run that finds room has it."""

    def __init__(self, filling: _Filling, ahead: Ahead) -> None:
        self.filling, self.ahead = filling, ahead
        self.withdraw: list[str] = []
        self.due_at = math.inf

    def plan(self, cancelled: Sequence[str]) -> None:
        state, now = self.filling.state, self.filling.now
        for capacity in self.filling.capacities:
            name = capacity.allocation.name
            jobs = [job for job in state.jobs.values() if job.request.allocation == name]
            chains = live_chains(jobs, self.ahead, now)
            chains += [begun_chain(one, self.ahead, now) for one in self.filling.submit if one.allocation == name]
            chosen = within_share(chains, capacity, self.ahead.num_sweeps)
            for chain in chains:
                self._withdraw(chain, capacity, cancelled, is_within=any(chain is one for one in chosen))
            if now >= self.ahead.closed_until.get(name, 0.0):
                self._extend([chain for chain in chosen if chain.is_open], capacity)

    def _withdraw(self, chain: Chain, capacity: Capacity, cancelled: Sequence[str], is_within: bool) -> None:
        far = self.filling.now + self.ahead.seconds
        for job, starts_at in chain.waiting:
            if job.is_ending or job.tag in cancelled:
                continue
            if (
                not is_within
                or not capacity.keeps_reservation_behind(job.request.nodes, chain.free_at)
                or (starts_at > far and finds_room(job, self.filling.capacities, self.ahead, self.filling.now))
            ):
                self.withdraw.append(job.tag)
                chain.is_open = False

    def _extend(self, chains: Sequence[Chain], capacity: Capacity) -> None:
        """Queues jobs behind the chain that ends first, until all have enough work or nothing is left."""
        ends = [(chain.ends_at, number) for number, chain in enumerate(chains)]
        heapq.heapify(ends)
        while ends:
            ends_at, number = heapq.heappop(ends)
            if ends_at >= self.filling.now + self.ahead.seconds:
                if self.filling.has_candidates():
                    self.due_at = min(self.due_at, ends_at - self.ahead.seconds)
                return
            if not has_share_of_submissions(capacity, self.ahead.num_sweeps):
                return
            chain = chains[number]
            if self.filling.behind(chain, capacity, self.ahead) is not None and chain.is_open:
                heapq.heappush(ends, (chain.ends_at, number))


def _jobs_to_cancel(capacity: Capacity, state: SweepState) -> Iterator[str]:
    """Jobs that wait in the cluster's queue, the newest first, until those that are left keep the user's own limits;
    and each that no limit of the cluster would ever let start."""
    there = [job for job in state.jobs.values() if job.request.allocation == capacity.allocation.name]
    left: dict[str, TrackedJob] = {job.tag: job for job in there if job.started_at is not None or not job.is_ending}
    held = held_by_jobs(list(left.values()))
    for job in reversed(list(left.values())):
        is_never = verdict(amount_of(job.request), capacity.limits, NOTHING).kind is VerdictKind.NEVER
        if job.started_at is None and (is_never or capacity.is_exceeded(held)):
            del left[job.tag]
            held = held_by_jobs(list(left.values()))
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
        best[2].reserved_at, best[2].spare_nodes, best[2].reserved_nodes = best[0], best[1], shape[0]


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
    there = [job for job in state.jobs.values() if job.request.allocation == capacity.allocation.name]
    # Successors that keep nodes from it are withdrawn.
    ends = sorted((free_at(chain[0], now), max(job.request.nodes for job in chain)) for chain in job_chains(there))
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
