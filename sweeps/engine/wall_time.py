"""How long runs and jobs are expected to run, and the time to ask for."""

from __future__ import annotations

import math
from collections.abc import Callable

from sweeps.engine.cluster import JobRequest
from sweeps.engine.policy import RULES
from sweeps.engine.run_states import RunState
from sweeps.engine.work import Work, expected_minutes

_WALL_MARGIN = 1.5
"""Wall time asked for over time expected, where nobody has said how much to ask for;"""
_LEAST_WALL_MINUTES = 10.0
"""then never less than this, for start-up."""


def minutes_left(run: RunState, minutes_of: Callable[[Work], float] = expected_minutes) -> float:
    """To the run's end: at the speed that its last attempt measured, or else by the estimate for the whole."""
    measured = run.attempts[-1].minutes_left if run.attempts else None
    return minutes_of(run.work) if measured is None else measured


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
