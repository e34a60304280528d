"""Successors: jobs that are submitted before there is room for them, and start when those before them have ended.

A successor is as wide as the job whose nodes it takes, or narrower, and counts for nothing beside it in nodes, GPUs,
CPUs and running jobs: the limits on these hold whenever it starts. It counts as a submitted job, and its GPU-hours as
those of any pending job.

A chain of jobs is given a successor while its work is expected to end within two looks at the cluster: by then the next
look may be late. So there are 2 x tick / expected minutes of them, rounded up, `_LONGEST_CHAIN` at most, and a long run
gets its own just before its end. There is none behind a job that will want more time, whose own continuation shall have
the nodes; none while a limit is exceeded; none on nodes that a wider run waits for; and where other sweeps of the user
wait for nodes too, only on an equal share of each limit on nodes, GPUs, CPUs, jobs and submitted jobs.

Successors that are not to start are withdrawn at the next look: all of them while the sweep is paused or a limit is
exceeded, those with a run that is held, those beyond the share, those on nodes that a wider run waits for, and those
that wait for an end more than two looks away while there are nodes that nobody else wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sweeps.engine.capacity import Capacity
from sweeps.engine.cluster import JobRequest, Resource
from sweeps.engine.job_needs import indivisible_minutes, job_minutes
from sweeps.engine.quota import NOTHING, OF_NODES, Amount, VerdictKind, held_by_chain, job_chains
from sweeps.engine.sweep_state import SweepState, TrackedJob
from sweeps.engine.work import Work, expected_minutes
from sweeps.engine.works import Shape, shape_of

_LONGEST_CHAIN = 32
"""Jobs: each names all before it to the scheduler, which looks through their names."""
_LEAST_SECONDS = 1.0
"""No job holds its nodes for less."""
_ONE_JOB = Amount({Resource.SUBMITTED: 1.0})


@dataclass(frozen=True)
class Ahead:
    """How far ahead a sweep may queue."""

    seconds: float
    """The work that a chain is to have: two ticks."""
    num_sweeps: int = 1
    """Sweeps of the user that want nodes of the same allocations, this one included."""
    closed_until: Mapping[str, float] = field(default_factory=dict)
    """Unix seconds before which an allocation takes no successors, by allocation."""
    minutes_of: Callable[[Work], float] = expected_minutes
    """How long an attempt at the work holds its nodes."""


@dataclass
class Chain:
    """A job and its successors, of which some may only be planned."""

    requests: list[JobRequest]
    ends_at: float
    """When all are expected to have ended; Unix seconds."""
    free_at: float
    """When the first one's nodes would be free for a wider run; Unix seconds."""
    waiting: list[tuple[TrackedJob, float]] = field(default_factory=list)
    """Successors that have not started, each with the time at which it is expected to."""
    is_open: bool = True
    """Whether another successor may be queued behind it."""

    def takes(self, shape: Shape) -> bool:
        """Whether a job of that shape finds all it needs where the last one has run."""
        last = self.requests[-1]
        return all(a <= b for a, b in zip(shape, (last.nodes, last.gpus_per_node, last.cpus_per_node), strict=True))

    def add(self, request: JobRequest, ahead: Ahead) -> None:
        self.requests.append(request)
        self.ends_at += seconds_of(request, ahead)
        self.is_open = _takes_successor(self.requests)


def begun_chain(request: JobRequest, ahead: Ahead, now: float) -> Chain:
    """The chain of a job that is submitted now."""
    return Chain(
        [request],
        now + seconds_of(request, ahead),
        now + 60 * job_minutes(request),
        is_open=_takes_successor([request]),
    )


def live_chains(jobs: Sequence[TrackedJob], ahead: Ahead, now: float) -> list[Chain]:
    """The chains of the jobs in flight of one allocation."""
    return [_live_chain(chain, ahead, now) for chain in job_chains(jobs)]


def _live_chain(jobs: Sequence[TrackedJob], ahead: Ahead, now: float) -> Chain:
    ends_at = now
    waiting = []
    for job in jobs:
        if job.is_behind:
            waiting.append((job, ends_at))
        ends_at += 0.0 if job.started_at is None and job.is_ending else _seconds_left(job, ahead, now)
    requests = [job.request for job in jobs]
    # Before its number is on record nobody can say what to wait for.
    is_open = _takes_successor(requests) and all(job.job_id is not None for job in jobs)
    return Chain(requests, ends_at, free_at(jobs[0], now), waiting, is_open)


def _takes_successor(requests: Sequence[JobRequest]) -> bool:
    """Whether the chain is not too long, and its last job does not leave work that wants the nodes itself."""
    last = requests[-1]
    goes_on = any(
        attempt.work.adapter.resumes and attempt.work.need.expected_minutes > last.wall_minutes
        for attempt in last.attempts
    )
    return len(requests) < _LONGEST_CHAIN and not goes_on


def seconds_of(request: JobRequest, ahead: Ahead) -> float:
    """How long a job is expected to hold its nodes."""
    minutes = max(ahead.minutes_of(attempt.work) for attempt in request.attempts)
    return max(_LEAST_SECONDS, 60 * min(minutes, request.wall_minutes))


def _seconds_left(job: TrackedJob, ahead: Ahead, now: float) -> float:
    """One that is overdue is expected to take as long again as it is overdue."""
    seconds = seconds_of(job.request, ahead)
    return seconds if job.started_at is None else abs(job.started_at + seconds - now)


def free_at(job: TrackedJob, now: float) -> float:
    """When a job is expected to end, as a reservation counts on it; Unix seconds."""
    return (now if job.started_at is None else job.started_at) + 60 * job_minutes(job.request)


def unwanted_successors(state: SweepState) -> Iterator[str]:
    """Tags of successors that people do not want to start."""
    for job in state.jobs_behind():
        if state.paused or _has_held_run(job, state):
            yield job.tag


def _has_held_run(job: TrackedJob, state: SweepState) -> bool:
    runs = [state.runs.get(attempt.work.name) for attempt in job.request.attempts]
    return any(run is not None and run.held is not None for run in runs)


def within_share(chains: Sequence[Chain], capacity: Capacity, num_sweeps: int) -> list[Chain]:
    """The chains that may have successors: those that have some, then those that end first, up to an equal share."""
    found, held = [], NOTHING
    for chain in sorted(chains, key=lambda one: (not one.waiting, one.ends_at)):
        more = held + held_by_chain(chain.requests)
        if capacity.is_within_share(more, OF_NODES, num_sweeps):
            found.append(chain)
            held = more
    return found


def has_share_of_submissions(capacity: Capacity, num_sweeps: int) -> bool:
    """Whether one job more is within an equal share of the jobs that may be submitted at once."""
    return capacity.is_within_share(capacity.held + _ONE_JOB, (Resource.SUBMITTED,), num_sweeps)


def finds_room(job: TrackedJob, capacities: Sequence[Capacity], ahead: Ahead, now: float) -> bool:
    """Whether an allocation has nodes for a successor that nobody else wants; they are counted as its own then."""
    works = [attempt.work for attempt in job.request.attempts]
    shape, seconds = shape_of(works[0]), seconds_of(job.request, ahead)
    wall = max(indivisible_minutes(work) for work in works)
    for capacity in capacities:
        room = capacity.verdict_on(shape, seconds / 60, now, wall).kind is VerdictKind.RUN
        if room and capacity.slots(shape) >= len(works):
            capacity.add(job.request, now + seconds)
            return True
    return False
