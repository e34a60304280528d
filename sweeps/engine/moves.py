"""Which of several allocations a run takes, and when a pending job moves to another: pure functions.

Of several allocations with room each run takes the one where it will end first, by its length and the waits that the
sweep has seen there; of those that differ by less than a minute the cheapest by GPU-hour, then the one where fewest of
the sweep's jobs wait. A job that has waited moves where room is left after that and none of the sweep's jobs waits: it
is cancelled while it is pending and submitted anew, which counts as no attempt. It moves once it has waited as long as
the last one did in its new place, and twice as long as when jobs last left its own, so that none goes back and forth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sweeps.engine.capacity import Capacity
from sweeps.engine.job_needs import indivisible_minutes, job_minutes
from sweeps.engine.quota import VerdictKind
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.works import Shape, shape_of

_SAME_END_MINUTES = 1.0
"""Ends that differ by no more are as good as each other."""
_LEAST_WAIT_MINUTES = 5.0
"""A pending job keeps its place in a queue at least so long."""


@dataclass(frozen=True)
class Move:
    """A pending job to be cancelled, since another allocation has room for it."""

    tag: str
    to: str
    waited_minutes: float
    """The longest wait of the sweep's jobs that are pending where it is."""


def first_to_end(shape: Shape, minutes: float, capacities: Sequence[Capacity]) -> Capacity:
    """The allocation, of several that have room, for a run of that shape and length."""
    ends = [one.minutes_to_end(shape, minutes) for one in capacities]
    equal = [n for n, end in enumerate(ends) if end <= min(ends) + _SAME_END_MINUTES]
    best = min(equal, key=lambda n: (capacities[n].allocation.highest_price, capacities[n].num_queued, ends[n]))
    return capacities[best]


def moves_of(
    state: SweepState, capacities: Sequence[Capacity], now: float, cancel_pending: Sequence[str]
) -> Iterator[Move]:
    """Pending jobs, the newest first, for which another allocation has room."""
    waits = {one.allocation.name: _pending_minutes(one.allocation.name, state, now) for one in capacities}
    without_queue = [one for one in capacities if not one.num_queued]
    for job in reversed(state.jobs.values()):
        if job.started_at is not None or job.job_id is None or job.is_ending or job.is_behind:
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
            to = first_to_end(shape, minutes, room)
            to.add(request, now + 60 * minutes)
            yield Move(job.tag, to.allocation.name, waited)


def _latest_wait(allocation: str, state: SweepState) -> float:
    """Minutes that the job waited that started there last, or those that made jobs leave, whichever are more."""
    started = [
        (job.started_at, job.queue_minutes(job.started_at))
        for job in state.jobs.values()
        if job.request.allocation == allocation and job.started_at is not None
    ]
    return max(max(started, default=(0.0, 0.0))[1], state.left_after.get(allocation, 0.0))


def _pending_minutes(allocation: str, state: SweepState, now: float) -> float:
    """The longest wait of the sweep's jobs that are pending there."""
    jobs = [job for job in state.jobs.values() if job.request.allocation == allocation and job.started_at is None]
    return max((job.queue_minutes(now) for job in jobs), default=0.0)


def queue_minutes(allocation: str, state: SweepState, now: float) -> float:
    """The longest wait in the queue of the sweep's jobs that are pending or running, or have left for another one."""
    waits = [job.queue_minutes(now) for job in state.jobs.values() if job.request.allocation == allocation]
    return max(max(waits, default=0.0), state.left_after.get(allocation, 0.0))
