"""Which jobs to submit now: a pure function of the sweep's state, the limits and the time.

Widest first. A run that does not fit now keeps a reservation at the earliest time it could start; narrower ones go
before it only where they end by then or leave its nodes free (EASY backfill), so that none starves. Runs smaller than a
node that is handed out whole are packed together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sweeps.clusters.interface import JobRequest, Limit, Resource
from sweeps.config import AllocationConfig, ClusterConfig
from sweeps.policy import Cause
from sweeps.quota import Amount, Verdict, VerdictKind, asked, held_by_sweep, shape_verdict, verdict
from sweeps.state import RunState, SweepState
from sweeps.work import Attempt, Need

_STRIKE_SECONDS = 6 * 3600.0
"""A node that failed us is avoided for so long,"""
_MOST_EXCLUDED = 8
"""and so many nodes at most: beyond that the trouble is not the nodes'."""
_WALL_MARGIN = 1.5
"""Wall time asked for over time expected,"""
_LEAST_WALL_MINUTES = 10.0
"""but never less than this, for start-up."""


@dataclass(frozen=True)
class Plan:
    """What to submit now, and what to say of the runs that are not."""

    submit: list[JobRequest] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """By run, for those that wait or can never run."""


@dataclass
class _Room:
    """One allocation while it is being filled."""

    allocation: AllocationConfig
    limits: Sequence[Limit]
    held: Amount
    reserved_at: float = math.inf
    """When the run with the reservation could start; Unix seconds."""
    spare_nodes: float = math.inf
    """Nodes that it leaves free then."""

    def lets_pass(self, nodes: int, ends_at: float) -> bool:
        """Whether a job of that width and end leaves the reservation alone."""
        return ends_at <= self.reserved_at or nodes <= self.spare_nodes

    def take(self, amount: Amount, nodes: int, ends_at: float) -> None:
        self.held = self.held + amount
        if ends_at > self.reserved_at:
            self.spare_nodes -= nodes


def decide(state: SweepState, cluster: ClusterConfig, limits: Mapping[str, Sequence[Limit]], now: float) -> Plan:
    """What to submit at `now` (Unix seconds)."""
    plan = Plan()
    if state.paused or now < state.defer_until:
        return plan
    held = held_by_sweep(cluster, state, now)
    rooms = [_Room(a, limits.get(a.name, ()), held[a.name]) for a in cluster.allocations]
    excluded = excluded_nodes(state, now)
    waiting = [run for run in state.runs.values() if run.is_waiting and run.not_before <= now]
    waiting.sort(key=_width_first)
    queue: dict[str, RunState] = {run.work.name: run for run in waiting}
    tags = (f"{state.prefix}{state.num_jobs + n:06d}" for n in range(1, len(queue) + 1))
    for name, run in list(queue.items()):
        if name not in queue:
            continue  # packed with an earlier one
        verdicts = {}
        for room in rooms:
            pack = _pack(run, queue.values(), room.allocation)
            request = _request("", pack, room.allocation, excluded)
            answer = _answer(run.work.need, request, room, now)
            verdicts[room.allocation.name] = answer
            if answer.kind is VerdictKind.RUN:
                tag = next(tags)
                plan.submit.append(_request(tag, pack, room.allocation, excluded))
                room.take(_amount(request), request.nodes, now + 60 * _expected(pack))
                for packed in pack:
                    del queue[packed.work.name]
                break
        else:
            plan.verdicts[name] = _combined(verdicts)
            _reserve(run, rooms, state, now)
    return plan


def _width_first(run: RunState) -> tuple[float, float]:
    need = run.work.need
    return (-need.nodes * max(1, need.gpus_per_node), -need.expected_minutes)


def _answer(need: Need, request: JobRequest, room: _Room, now: float) -> Verdict:
    shape = shape_verdict(need, room.allocation)
    if shape.kind is VerdictKind.NEVER:
        return shape
    answer = verdict(_amount(request), room.limits, room.held)
    ends_at = now + 60 * max(attempt.work.need.expected_minutes for attempt in request.attempts)
    if answer.kind is VerdictKind.RUN and not room.lets_pass(request.nodes, ends_at):
        return Verdict(VerdictKind.WAIT, "nodes are kept for a wider run")
    return answer


def _combined(verdicts: Mapping[str, Verdict]) -> Verdict:
    """NEVER only where every allocation says so."""
    waits = [v for v in verdicts.values() if v.kind is VerdictKind.WAIT]
    if waits:
        return waits[0]
    return Verdict(VerdictKind.NEVER, "; ".join(f"{name}: {v.why}" for name, v in verdicts.items()))


def _reserve(run: RunState, rooms: Sequence[_Room], state: SweepState, now: float) -> None:
    """Gives the first run that waits for nodes the earliest start there is, in the allocation that offers it."""
    if any(room.reserved_at < math.inf for room in rooms):
        return
    best: tuple[float, float, _Room] | None = None
    for room in rooms:
        request = _request("", [run], room.allocation, ())
        if shape_verdict(run.work.need, room.allocation).kind is VerdictKind.NEVER:
            continue
        if verdict(_amount(request), room.limits, Amount({})).kind is VerdictKind.NEVER:
            continue
        start = _earliest_start(request.nodes, room, state, now)
        if start is not None and (best is None or start[0] < best[0]):
            best = (*start, room)
    if best is not None:
        best[2].reserved_at, best[2].spare_nodes = best[0], best[1]


def _earliest_start(nodes: int, room: _Room, state: SweepState, now: float) -> tuple[float, float] | None:
    """When that many nodes will be free under the tightest node limit, and how many more then; None without a limit."""
    limits = [limit for limit in room.limits if limit.resource is Resource.NODES]
    if not limits:
        return None
    free = min(limit.most - limit.used_by_others for limit in limits) - room.held.of.get(Resource.NODES, 0.0)
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


def job_minutes(request: JobRequest) -> float:
    """How long a job is expected to run."""
    return min(request.wall_minutes, max(a.work.need.expected_minutes for a in request.attempts))


def _pack(run: RunState, others: Iterable[RunState], allocation: AllocationConfig) -> list[RunState]:
    """The run and, where nodes come whole, as many of the others of its size as fit beside it."""
    need = run.work.need
    if not allocation.whole_nodes or need.nodes > 1 or need.gpus_per_node == 0:
        return [run]
    places = allocation.gpus_per_node // max(1, need.gpus_per_node)
    pack = [run]
    for other in others:
        if len(pack) >= places:
            break
        same = (other.work.need.nodes, other.work.need.gpus_per_node) == (1, need.gpus_per_node)
        if other is not run and same:
            pack.append(other)
    return pack


def _request(tag: str, pack: Sequence[RunState], allocation: AllocationConfig, excluded: Sequence[str]) -> JobRequest:
    need = pack[0].work.need
    attempts = tuple(Attempt(run.work, next_attempt_number(run), run.memory_halvings) for run in pack)
    wall = max(wall_minutes(run, allocation.max_wall_minutes) for run in pack)
    whole = allocation.whole_nodes
    return JobRequest(
        tag=tag,
        allocation=allocation.name,
        attempts=attempts,
        nodes=need.nodes,
        gpus_per_node=allocation.gpus_per_node if whole else need.gpus_per_node,
        cpus_per_node=allocation.cpus_per_node if whole else need.cpus_per_node,
        wall_minutes=wall,
        excluded_nodes=tuple(excluded),
    )


def next_attempt_number(run: RunState) -> int:
    return run.attempts[-1].number + 1 if run.attempts else 1


def wall_minutes(run: RunState, longest: float) -> float:
    """What the run needs with a margin, doubled for each time it ran into the limit; never more than is allowed."""
    need = run.work.need
    timeouts = sum(attempt.cause is Cause.TIMEOUT for attempt in run.attempts)
    wanted = max(_LEAST_WALL_MINUTES, _WALL_MARGIN * need.expected_minutes, need.wall_minutes) * 2.0**timeouts
    return min(longest, wanted)


def _expected(pack: Sequence[RunState]) -> float:
    return max(run.work.need.expected_minutes for run in pack)


def _amount(request: JobRequest) -> Amount:
    gpu_hours = request.nodes * request.gpus_per_node * job_minutes(request) / 60
    return asked(request.nodes, request.gpus_per_node, request.cpus_per_node, request.wall_minutes, gpu_hours)


def excluded_nodes(state: SweepState, now: float) -> tuple[str, ...]:
    """Nodes that failed us lately, the newest failures first, never more than a few."""
    recent = {
        node: strikes.times[-1]
        for node, strikes in state.strikes.items()
        if strikes.times and now - strikes.times[-1] < _STRIKE_SECONDS
    }
    return tuple(sorted(sorted(recent), key=lambda node: -recent[node])[:_MOST_EXCLUDED])
