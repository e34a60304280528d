"""Where the charged hours of a job that has ended went. Pure: times in, hours by kind out.

Every kind is zero or more, and all of them add up to what was charged. Where nothing is known, `Kind.WORK` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muloco_runner.record import AttemptTimes, Kind, lost_to
from sweeps.engine.policy import Cause

_BEFORE_THE_WORK = (Cause.SETUP_FAILED, Cause.LAUNCH_FAILURE)
"""An attempt that ended so did nothing of its own."""
_COULD_SAY_NOTHING = (Cause.DISK_FULL, Cause.CANNOT_WRITE)
"""What an attempt that ended so has not reported may have been work all the same, and is lost."""

_ROUNDING = 1e-9
"""Of the charge: what sums of its parts may differ from it."""


@dataclass(frozen=True)
class AttemptCharge:
    """What is known of one attempt of a job that has ended."""

    name: str
    """Its work's."""
    processors: int
    """GPUs of its own, or CPUs in a job without GPUs."""
    started_at: float | None
    ended_at: float
    """Unix seconds; its own end, which in a pack may be long before the job's."""
    cause: Cause
    times: AttemptTimes | None = None
    """What it has reported itself; None where it has not."""


def itemise(charged: float, attempts: Sequence[AttemptCharge]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Hours by kind: of each attempt, by its work's name, and of what no attempt used; together `charged` hours."""
    seconds = {attempt.name: attempt_seconds(attempt) for attempt in attempts}
    used = sum(attempt.processors * sum(seconds[attempt.name].values()) for attempt in attempts) / 3600
    if not used:
        # Nobody knows who used it: no attempt was seen to start.
        return {}, {Kind.WORK: charged} if charged else {}
    # Clocks of several hosts may make the attempts longer than their job.
    scale = min(1.0, charged / used) / 3600
    hours = {
        attempt.name: {kind: attempt.processors * scale * length for kind, length in seconds[attempt.name].items()}
        for attempt in attempts
    }
    idle = charged - sum(sum(own.values()) for own in hours.values())
    return hours, {Kind.IDLE: idle} if idle > _ROUNDING * charged else {}


def attempt_seconds(attempt: AttemptCharge) -> dict[str, float]:
    """The seconds of one attempt by kind, kinds without any left out; they add up to its duration."""
    if attempt.started_at is None:
        return {}
    left = max(0.0, attempt.ended_at - attempt.started_at)
    if attempt.times is None:
        return {_unreported_kind(attempt.cause): left} if left else {}
    parts: dict[str, float] = {}
    *measured, (rest, _) = _parts(attempt, attempt.started_at, attempt.times)
    for kind, length in measured:
        # Hosts and scheduler may differ in their clocks: no more than there is.
        taken = min(max(0.0, length), left)
        parts[kind] = parts.get(kind, 0.0) + taken
        left -= taken
    parts[rest] = parts.get(rest, 0.0) + left
    return {kind: length for kind, length in parts.items() if length}


def _unreported_kind(cause: Cause) -> str:
    if cause in _COULD_SAY_NOTHING:
        return lost_to(cause.value)
    return Kind.START_UP if cause in _BEFORE_THE_WORK else Kind.WORK


def _parts(attempt: AttemptCharge, started_at: float, times: AttemptTimes) -> list[tuple[str, float]]:
    """Kinds and their seconds, the most certain first; the last takes what is left."""
    checkpoints = (Kind.CHECKPOINTS, times.loading_seconds + times.saving_seconds)
    lost = lost_to(attempt.cause.value)
    if times.first_step_at is None:
        return [checkpoints, (lost if attempt.cause in _COULD_SAY_NOTHING else Kind.START_UP, 0.0)]
    is_done = attempt.cause is Cause.FINISHED
    unreported = Kind.SHUT_DOWN if is_done or times.ended else lost
    return [
        checkpoints,
        (Kind.START_UP, times.first_step_at - started_at - times.loading_seconds - times.early_compile_seconds),
        (unreported, attempt.ended_at - times.as_of),
        (Kind.EVALUATION, times.evaluation_seconds),
        (Kind.COMPILE, times.compile_seconds),
        (lost, 0.0 if is_done else times.unsaved_seconds),
        (Kind.TRAINING, 0.0),
    ]
