"""What the end of an attempt means and what happens next: one table from cause to consequences, `RULES`.

The attempt's own exit code decides where there is one; what the scheduler reports counts only where the attempt was
killed before it could leave its ending.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from muloco_runner.record import KILLED_BY_SIGNAL, STOPPED_CODES, ExitCode
from sweeps.engine.cluster import JobEnd
from sweeps.engine.outcome import Ending


class Cause(Enum):
    FINISHED = "finished"
    WANTS_MORE_TIME = "wants more time"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    NODE_FAILURE = "node failure"
    OUT_OF_MEMORY = "out of memory"
    OUT_OF_HOST_MEMORY = "out of main memory"
    CRASH = "crash"
    CANNOT_WRITE = "cannot write"
    DISK_FULL = "disk full"
    CONFIG_CANNOT_RUN = "config cannot run"
    LAUNCH_FAILURE = "launch failure"
    SETUP_FAILED = "setup failed"
    HANG = "hang"
    LOST = "lost"
    HALVED = "stopped early"
    CANCELLED = "cancelled"
    CANCELLED_OUTSIDE = "cancelled outside"
    CANCELLED_WITH_JOB = "its job was cancelled for another run"
    STOPPED = "stopped with its controller"


@dataclass(frozen=True)
class Rule:
    """What follows from an attempt that ended with one cause: a row of `RULES`."""

    retries: int | None
    """Attempts after the first that ended so, counted since the checkpoint last advanced; None for any number."""
    backoff_seconds: float = 0.0
    """Before the next attempt; doubles with each one that ended so, up to `_LONGEST_BACKOFF_SECONDS`."""
    free_with_progress: bool = False
    """An attempt that ended so after a new checkpoint is not counted: it was asked to stop, and has done its part."""
    excludes_node: bool = False
    """The next attempts go to other nodes."""
    doubles_wall_time: bool = False
    """The next attempts ask for twice the time."""
    doubles_memory: bool = False
    """The next attempts ask for twice the main memory, as far as that is allowed."""
    only_if_changed: bool = False
    """There is a next attempt only where it runs with something other than the last: it would end the same."""
    adjusts: bool = False
    """The next attempts run with what the work's adapter adjusts after this cause."""
    holds_group: bool = False
    """`IDENTICAL_FAILURES` runs that end so with one message hold the others of their group."""
    is_failure: bool = True
    """A run that is held for it has failed: neither the cluster nor a person has ended it."""
    done: bool = False
    """Nothing is left to do."""
    may_be_full_disk: bool = False
    """Seen from outside, an attempt that found no disk space ends so too: what it said, or else its disk, tells."""
    advice: str = ""
    """What a person can do about a run that is held. "{again}" and "{attempts}" stand for how often it ended so."""


IDENTICAL_FAILURES = 3
"""So many runs with the same failure hold the others of their group: one bug is not paid for a hundred times."""
_LONGEST_BACKOFF_SECONDS = 3600.0
_LARGEST_EXPONENT = sys.float_info.max_exp - 1
"""A larger power of two is an `OverflowError`."""
_MOST_FAILURES = 10
"""So many failures of one kind are too many, also where each attempt gets a little further."""
_NO_PROGRESS = "no new checkpoint in {attempts}: give it more wall time or checkpoint more often"

RULES: dict[Cause, Rule] = {
    Cause.FINISHED: Rule(0, done=True),
    # A second attempt in a row that asks for more time without a new checkpoint would be repeated for ever.
    Cause.WANTS_MORE_TIME: Rule(1, free_with_progress=True, may_be_full_disk=True, advice=_NO_PROGRESS),
    Cause.TIMEOUT: Rule(1, free_with_progress=True, doubles_wall_time=True, may_be_full_disk=True, advice=_NO_PROGRESS),
    # Not the run's fault, whatever it had done by then.
    Cause.PREEMPTED: Rule(
        50,
        5.0,
        free_with_progress=True,
        is_failure=False,
        advice="preempted over and over: use an allocation of higher priority",
    ),
    Cause.STOPPED: Rule(None, free_with_progress=True),
    Cause.NODE_FAILURE: Rule(
        5, 5.0, excludes_node=True, is_failure=False, advice="lost its node over and over: ask the administrators"
    ),
    Cause.LOST: Rule(
        5,
        1.0,
        is_failure=False,
        may_be_full_disk=True,
        advice="vanished over and over: look at the scheduler's log",
    ),
    Cause.LAUNCH_FAILURE: Rule(
        3, 30.0, excludes_node=True, may_be_full_disk=True, advice="could not be started: see its attempts' folder"
    ),
    Cause.SETUP_FAILED: Rule(
        1,
        30.0,
        excludes_node=True,
        holds_group=True,
        may_be_full_disk=True,
        advice="`setup` or `python` fails before the work begins: correct it, launch again, then `retry`",
    ),
    Cause.OUT_OF_MEMORY: Rule(1, adjusts=True, advice="out of memory again: ask for more GPUs or nodes"),
    Cause.OUT_OF_HOST_MEMORY: Rule(
        4,
        doubles_memory=True,
        only_if_changed=True,
        advice="set memory_gigabytes, and max_memory_gigabytes for what it may be given after that",
    ),
    Cause.CRASH: Rule(
        1,
        5.0,
        excludes_node=True,
        holds_group=True,
        may_be_full_disk=True,
        advice="crashed{again}: correct what it says, then `retry`",
    ),
    Cause.CANNOT_WRITE: Rule(
        1, 5.0, advice="nothing can be written into its folder: make room or fix it, then `retry`"
    ),
    # Somebody must make room, or another job must end: in the end most of a day is waited.
    Cause.DISK_FULL: Rule(24, 60.0, advice="no room for hours: make some, or have the quota raised, then `retry`"),
    Cause.HANG: Rule(2, 5.0, excludes_node=True, advice="stopped answering over and over: see what it did last"),
    Cause.CONFIG_CANNOT_RUN: Rule(0, advice="correct the config or the data path"),
    # A result, though not a loss: what it could become at best is known.
    Cause.HALVED: Rule(0, is_failure=False, advice="a result of its own; `retry` goes on from its checkpoint"),
    Cause.CANCELLED: Rule(0, is_failure=False, advice="cancelled by hand: `retry` starts it again"),
    # Whoever did it wants the nodes for something else: to queue the run again would be to argue.
    Cause.CANCELLED_OUTSIDE: Rule(
        0, is_failure=False, advice="not by this sweep: `retry` continues from its checkpoint"
    ),
    # Nobody wanted it to end: it shared the job of a run that was cancelled.
    Cause.CANCELLED_WITH_JOB: Rule(None, free_with_progress=True),
}

_BY_CODE: dict[int | None, Cause] = {
    ExitCode.FINISHED: Cause.FINISHED,
    ExitCode.CRASH: Cause.CRASH,
    ExitCode.USAGE: Cause.CONFIG_CANNOT_RUN,
    ExitCode.CONFIG_CANNOT_RUN: Cause.CONFIG_CANNOT_RUN,
    ExitCode.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
    ExitCode.OUT_OF_HOST_MEMORY: Cause.OUT_OF_HOST_MEMORY,
    ExitCode.WANTS_MORE_TIME: Cause.WANTS_MORE_TIME,
    ExitCode.SETUP_FAILED: Cause.SETUP_FAILED,
    # Asked to stop while it was still starting up.
    **dict.fromkeys(STOPPED_CODES, Cause.WANTS_MORE_TIME),
}
_SPOKEN_BY_ALL = {ExitCode.FINISHED, ExitCode.WANTS_MORE_TIME, *STOPPED_CODES}
"""Exit codes that mean the same of work of every kind; others are the application's own (`speaks_exit_codes`)."""
_BY_END = {
    # Without an exit code, or with 0 and no result, it is no success.
    JobEnd.EXITED: Cause.CRASH,
    JobEnd.TIMEOUT: Cause.TIMEOUT,
    JobEnd.PREEMPTED: Cause.PREEMPTED,
    JobEnd.NODE_FAILURE: Cause.NODE_FAILURE,
    JobEnd.OUT_OF_MEMORY: Cause.OUT_OF_HOST_MEMORY,
    JobEnd.LAUNCH_FAILURE: Cause.LAUNCH_FAILURE,
    JobEnd.CANCELLED: Cause.CANCELLED_OUTSIDE,
    JobEnd.LOST: Cause.LOST,
}


def _check_complete(table: Mapping[Any, object], keys: type[Enum]) -> None:
    missing = [key.name for key in keys if key not in table]
    if missing:
        raise TypeError(
            f"sweeps.engine.policy: {keys.__name__} {', '.join(missing)} has no row: say what follows from it"
        )


_check_complete(RULES, Cause)
_check_complete(_BY_CODE, ExitCode)
_check_complete(_BY_END, JobEnd)


def cause_of(ending: Ending | None, end: JobEnd, exit_code: int | None, speaks_exit_codes: bool) -> Cause:
    """The cause of the end of an attempt whose job the sweep itself has not cancelled.

    `ending` is the attempt's own exit record; `end` and `exit_code` are what the scheduler reports;
    `speaks_exit_codes` is the work's (`Adapter`).
    """
    if ending is not None:
        cause = _by_code(ending.exit_code, speaks_exit_codes or ending.by_watcher)
        if cause is not Cause.WANTS_MORE_TIME:
            return cause
        # It was asked to stop and saved itself: by whom, only the scheduler knows.
        if end is JobEnd.CANCELLED:
            return Cause.CANCELLED_OUTSIDE
        # One that ends in order, within the time of grace, is no preempted job to the scheduler.
        return Cause.PREEMPTED if end is JobEnd.PREEMPTED or ending.stopped_early else cause
    if end is JobEnd.EXITED and exit_code not in (None, ExitCode.FINISHED):
        return _by_code(exit_code, speaks_exit_codes)
    return _BY_END[end]


def how_it_ended(ending: Ending | None, end: JobEnd, exit_code: int | None) -> str:
    """The attempt's exit code in words, "killed by SIGKILL" or "exit code 3"; empty where it left none, or ended well.

    The arguments are those of `cause_of`.
    """
    code = ending.exit_code if ending is not None else exit_code if end is JobEnd.EXITED else None
    if code is None or code == ExitCode.FINISHED:
        return ""
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(code - KILLED_BY_SIGNAL).name}"
    return f"exit code {code}"


def cause_beside_cancelled(ending: Ending | None, end: JobEnd, exit_code: int | None, speaks_exit_codes: bool) -> Cause:
    """The cause of the end of an attempt whose job the sweep has cancelled for the sake of another run.

    What befell the attempt by itself, or the job before the scheduler obeyed, stays its cause. The arguments are
    those of `cause_of`.
    """
    cause = cause_of(ending, end, exit_code, speaks_exit_codes)
    was_asked = ending is not None and cause in (Cause.WANTS_MORE_TIME, Cause.PREEMPTED, Cause.CANCELLED_OUTSIDE)
    was_killed = ending is None and end in (JobEnd.CANCELLED, JobEnd.EXITED, JobEnd.LOST)
    return Cause.CANCELLED_WITH_JOB if was_asked or was_killed else cause


def _by_code(code: int | None, is_spoken: bool) -> Cause:
    return _BY_CODE.get(code, Cause.CRASH) if is_spoken or code in _SPOKEN_BY_ALL else Cause.CRASH


@dataclass(frozen=True)
class PastAttempt:
    """What the policy must know of an attempt."""

    cause: Cause
    advanced: bool
    """Whether it left a newer checkpoint than it started from."""
    can_change: bool = True
    """Whether another attempt can be given more of what this one lacked (`Rule.only_if_changed`)."""


@dataclass(frozen=True)
class NextStep:
    """What follows from an attempt's end: done, again after `wait_seconds`, or held with a reason."""

    done: bool = False
    hold: str | None = None
    wait_seconds: float = 0.0


def changed_retries(retries: int, max_timeouts: int) -> dict[str, int]:
    """`Rule.retries` where a cluster's settings (`ClusterConfig`) change them, by the cause's value."""
    wanted = {
        Cause.CRASH: retries,
        Cause.SETUP_FAILED: retries,
        Cause.TIMEOUT: max_timeouts - 1,
        Cause.WANTS_MORE_TIME: max_timeouts - 1,
    }
    return {cause.value: most for cause, most in wanted.items() if most != RULES[cause].retries}


def after(attempts: Sequence[PastAttempt], changed: Mapping[str, int] | None = None) -> NextStep:
    """What follows from the last of one run's `attempts`, those since it was last released by hand, oldest first.

    `changed` is what was set when the last one ended (`changed_retries`).
    """
    cause = attempts[-1].cause
    rule = RULES[cause]
    if rule.done:
        return NextStep(done=True)
    same = _since_progress(attempts).count(cause)
    in_all = sum(attempt.cause is cause for attempt in attempts)
    retries = (changed or {}).get(cause.value, rule.retries)
    too_many = retries is not None and same > retries
    too_many = too_many or (rule.only_if_changed and not attempts[-1].can_change)
    most_in_all = max(_MOST_FAILURES, (retries or 0) + 1)
    if too_many or (in_all >= most_in_all and not rule.free_with_progress):
        attempts_in_words = {1: "one attempt", 2: "two attempts"}.get(same, f"{same} attempts")
        advice = rule.advice.format(again=" again" if in_all > 1 else "", attempts=attempts_in_words)
        return NextStep(hold=f"{cause.value}: {advice}")
    return NextStep(wait_seconds=doubled(rule.backoff_seconds, max(0, same - 1), _LONGEST_BACKOFF_SECONDS))


def doubled(seconds: float, times: int, most: float) -> float:
    """Return a pause that doubles with each failure, up to `most` seconds, however many failures there are."""
    return min(most, seconds * 2.0 ** min(times, _LARGEST_EXPONENT))


def _since_progress(attempts: Sequence[PastAttempt]) -> list[Cause]:
    """Causes of the attempts that count, newest first: back to the last that advanced, which counts itself unless it
    is free."""
    causes: list[Cause] = []
    for attempt in reversed(attempts):
        if attempt.advanced and RULES[attempt.cause].free_with_progress:
            break
        causes.append(attempt.cause)
        if attempt.advanced:
            break
    return causes
