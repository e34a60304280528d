"""What the end of an attempt means and what happens next: a pure table of cause to rule.

The attempt's own exit code decides where there is one; the scheduler's word counts only where the attempt was killed
before it could speak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from muloco_runner.record import STOPPED_CODES, ExitCode
from sweeps.engine.cluster import JobEnd
from sweeps.engine.outcome import Ending


class Cause(Enum):
    FINISHED = "finished"
    WANTS_MORE_TIME = "wants more time"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    NODE_FAILURE = "node failure"
    OUT_OF_MEMORY = "out of memory"
    CRASH = "crash"
    CANNOT_WRITE = "cannot write"
    CONFIG_CANNOT_RUN = "config cannot run"
    LAUNCH_FAILURE = "launch failure"
    HANG = "hang"
    LOST = "lost"
    CANCELLED = "cancelled"
    CANCELLED_OUTSIDE = "cancelled outside"
    STOPPED = "stopped with its controller"


@dataclass(frozen=True)
class Rule:
    retries: int
    """Attempts after the first that ended so, counted since the checkpoint last advanced."""
    backoff_seconds: float = 0.0
    """Before the next attempt; doubles with each one that ended so, up to `_LONGEST_WAIT`."""
    excludes_node: bool = False
    """The next attempts go to other nodes."""
    advice: str = ""
    """For a run that is held."""


_LONGEST_WAIT = 3600.0
_EVER = 10
"""So many failures of one kind are too many, also where each attempt gets a little further. Being asked to stop, by the
clock or for another's job, is no failure."""
_NO_PROGRESS = 1
"""A second attempt in a row that asks for more time without a new checkpoint would go on for ever."""

RULES: dict[Cause, Rule] = {
    Cause.WANTS_MORE_TIME: Rule(
        _NO_PROGRESS, advice="no new checkpoint in two attempts: give it more wall time or checkpoint more often"
    ),
    Cause.TIMEOUT: Rule(
        _NO_PROGRESS, advice="no new checkpoint in two attempts: give it more wall time or checkpoint more often"
    ),
    # Not the run's fault, whatever it had done by then.
    Cause.PREEMPTED: Rule(50, 5.0, advice="preempted over and over: use an allocation of higher priority"),
    Cause.NODE_FAILURE: Rule(5, 5.0, excludes_node=True, advice="lost its node over and over: ask the administrators"),
    Cause.LOST: Rule(5, 1.0, advice="vanished over and over: look at the scheduler's log"),
    Cause.LAUNCH_FAILURE: Rule(3, 30.0, excludes_node=True, advice="could not be started: see its attempts' folder"),
    Cause.OUT_OF_MEMORY: Rule(1, advice="out of memory with half the micro-batch too: ask for more GPUs or nodes"),
    Cause.CRASH: Rule(1, 5.0, excludes_node=True, advice="crashed again on another node: see its stderr.log"),
    Cause.CANNOT_WRITE: Rule(
        1, 5.0, advice="nothing can be written into its folder: make room or mend it, then `retry`"
    ),
    Cause.HANG: Rule(2, 5.0, excludes_node=True, advice="stopped answering over and over: see its stderr.log"),
    Cause.CONFIG_CANNOT_RUN: Rule(0, advice="cannot run as configured: correct the config or the data path"),
    Cause.STOPPED: Rule(1_000_000),
    Cause.CANCELLED: Rule(0, advice="cancelled by hand: `retry` starts it again"),
    # Whoever did it wants the nodes for something else: to queue the run again would be to argue.
    Cause.CANCELLED_OUTSIDE: Rule(0, advice="by `scancel`, not by this sweep: `retry` goes on from its checkpoint"),
}

_STOPPED = (Cause.WANTS_MORE_TIME, Cause.TIMEOUT, Cause.PREEMPTED, Cause.STOPPED)

IDENTICAL_FAILURES = 3
"""So many runs that crash in the same way hold the others of their group: one bug is not paid for a hundred times."""

_BY_CODE: dict[int | None, Cause] = {
    ExitCode.FINISHED: Cause.FINISHED,
    ExitCode.CONFIG_CANNOT_RUN: Cause.CONFIG_CANNOT_RUN,
    ExitCode.USAGE: Cause.CONFIG_CANNOT_RUN,
    ExitCode.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
    ExitCode.WANTS_MORE_TIME: Cause.WANTS_MORE_TIME,
    # Asked to stop while it was still starting up.
    **dict.fromkeys(STOPPED_CODES, Cause.WANTS_MORE_TIME),
}
_BY_END = {
    JobEnd.TIMEOUT: Cause.TIMEOUT,
    JobEnd.PREEMPTED: Cause.PREEMPTED,
    JobEnd.NODE_FAILURE: Cause.NODE_FAILURE,
    JobEnd.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
    JobEnd.LAUNCH_FAILURE: Cause.LAUNCH_FAILURE,
    JobEnd.CANCELLED: Cause.CANCELLED_OUTSIDE,
    JobEnd.LOST: Cause.LOST,
}


def cause_of(ending: Ending | None, end: JobEnd, exit_code: int | None) -> Cause:
    """Of an attempt whose job has ended, and not because the sweep asked for that. `exit_code` is the scheduler's, for
    an attempt that left no ending.
    """
    if ending is not None:
        cause = _by_code(ending.exit_code)
        if cause is not Cause.WANTS_MORE_TIME:
            return cause
        # It was asked to stop and saved itself: by whom, only the scheduler knows.
        if end is JobEnd.CANCELLED:
            return Cause.CANCELLED_OUTSIDE
        # One that ends in order, within the time of grace, is no preempted job to the scheduler.
        return Cause.PREEMPTED if end is JobEnd.PREEMPTED or ending.stopped_early else cause
    if end is JobEnd.EXITED:
        # Without its own word an exit code of 0 is no success.
        return Cause.CRASH if exit_code in (None, 0) else _by_code(exit_code)
    return _BY_END[end]


def _by_code(code: int | None) -> Cause:
    return _BY_CODE.get(code, Cause.CRASH)


@dataclass(frozen=True)
class PastAttempt:
    """What the policy must know of an attempt."""

    cause: Cause
    advanced: bool
    """Whether it left a newer checkpoint than it started from."""


@dataclass(frozen=True)
class Verdict:
    """What follows from an attempt's end: done, again after `wait_seconds`, or held with a reason."""

    done: bool = False
    hold: str | None = None
    wait_seconds: float = 0.0


def after(attempts: Sequence[PastAttempt]) -> Verdict:
    """`attempts` are those of one run since it was last released by hand, oldest first."""
    last = attempts[-1]
    if last.cause is Cause.FINISHED:
        return Verdict(done=True)
    rule = RULES[last.cause]
    same = 0
    for attempt in reversed(attempts):
        # One that advanced starts the count anew: it counts itself only where progress is not the question.
        if attempt.advanced and attempt.cause in _STOPPED:
            break
        same += attempt.cause is last.cause
        if attempt.advanced:
            break
    ever = sum(attempt.cause is last.cause for attempt in attempts)
    if same > rule.retries or (ever >= _EVER and last.cause not in _STOPPED):
        return Verdict(hold=f"{last.cause.value}: {rule.advice}")
    return Verdict(wait_seconds=min(_LONGEST_WAIT, rule.backoff_seconds * 2 ** max(0, same - 1)))
