"""What jobs ask for: time, by how long their runs are expected to take, and main memory, more after they ran out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sweeps.engine.cluster import JobRequest
from sweeps.engine.cluster_config import AllocationConfig
from sweeps.engine.policy import RULES
from sweeps.engine.run_states import RunState
from sweeps.engine.work import Work, expected_minutes

_WALL_MARGIN = 1.5
"""Wall time asked for over time expected, where nobody has said how much to ask for;"""
_LEAST_WALL_MINUTES = 10.0
"""then never less than this, for start-up."""


def minutes_left(run: RunState, minutes_of: Callable[[Work], float] = expected_minutes) -> float:
    """To the run's end: at the speed that its last attempt measured, or else by the estimate for the whole."""
    measured = measured_minutes_left(run)
    return minutes_of(run.work) if measured is None else measured


def measured_minutes_left(run: RunState) -> float | None:
    """From its last checkpoint to its end, at the speed of its last attempt that has ended; None where that is not
    known."""
    return next((attempt.minutes_left for attempt in reversed(run.attempts) if attempt.cause is not None), None)


def wall_minutes(run: RunState, longest: float, expected: float) -> float:
    """What was asked for, or else what the run needs with a margin; doubled for each time it ran into the limit; never
    more than is allowed."""
    doublings = sum(RULES[attempt.cause].doubles_wall_time for attempt in run.attempts if attempt.cause is not None)
    asked = run.work.need.wall_minutes or max(_LEAST_WALL_MINUTES, _WALL_MARGIN * expected)
    return min(longest, asked * 2.0**doublings)


def indivisible_minutes(work: Work) -> float:
    """Minutes that one job must be given: the time asked for, of work that cannot go on in a second job; else 0."""
    return 0.0 if work.adapter.resumes else work.need.wall_minutes


def num_jobs(minutes: float, longest: float) -> int:
    """Jobs that work of that length is cut into where each has at most `longest` minutes."""
    return max(1, math.ceil(minutes / max(1.0, longest)))


def job_minutes(request: JobRequest) -> float:
    """How long a job is expected to run."""
    return min(request.wall_minutes, max(a.work.need.expected_minutes for a in request.attempts))


def job_memory(pack: Sequence[RunState], allocation: AllocationConfig) -> tuple[float | None, bool]:
    """Return GiB of each node for runs that share it, None for the cluster's default, and whether it could be more.

    Runs share nodes only where a job has its nodes alone: what they ask for is the node's memory as a whole.
    """
    asked = [_memory_of(run, allocation) for run in pack]
    known = [gigabytes for gigabytes, _ in asked if gigabytes is not None]
    return max(known, default=None), any(can_grow for _, can_grow in asked)


def _memory_of(run: RunState, allocation: AllocationConfig) -> tuple[float | None, bool]:
    need = run.work.need
    gigabytes = allocation.memory_gigabytes if need.memory_gigabytes is None else need.memory_gigabytes
    if gigabytes is None:
        return None, False
    most = allocation.max_memory_gigabytes if need.max_memory_gigabytes is None else need.max_memory_gigabytes
    doublings = sum(RULES[attempt.cause].doubles_memory for attempt in run.attempts if attempt.cause is not None)
    most = max(gigabytes, most or 0.0)
    wanted = min(most, gigabytes * 2.0**doublings)
    return wanted, wanted < most
