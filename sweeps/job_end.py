"""What the end of a job means: why each attempt ended, from when to when, and what its hours went on.

Pure: what the scheduler and the attempts have left goes in, the fields of the ledger's `ended` event come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.engine.charges import AttemptCharge, itemise
from sweeps.engine.cluster import JobEnd, JobObservation, JobRequest
from sweeps.engine.outcome import Outcome
from sweeps.engine.policy import Cause, cause_beside_cancelled, cause_of, how_it_ended
from sweeps.engine.sweep_state import TrackedJob
from sweeps.engine.work import Attempt, Work


@dataclass(frozen=True)
class AttemptEnd:
    """One attempt of a job that has ended."""

    attempt: Attempt
    left: Outcome
    """What it has left in its folder."""
    cause: Cause
    detail: str
    """One line on how it ended."""


def cause_and_words(left: Outcome, job: TrackedJob, work: Work, seen: JobObservation) -> tuple[Cause, str]:
    """Return the cause and one line on how the attempt of that work ended, whose job has ended."""
    assert seen.end is not None
    if left.finished:
        return Cause.FINISHED, ""
    if work.name in job.cancelling:
        return job.cancelling[work.name], job.why.get(work.name, "")
    ended = (left.ending, seen.end, seen.exit_code)
    cause = (cause_beside_cancelled if job.cancelling else cause_of)(*ended, work.adapter.speaks_exit_codes)
    if cause is Cause.FINISHED:
        # Its exit code says so, but there is no result: another attempt will tell.
        return Cause.CRASH, "exit code 0 without a result"
    in_words = how_it_ended(*ended) if cause is Cause.CRASH else ""
    return cause, left.message or in_words or seen.reason


def ended_event(job: TrackedJob, seen: JobObservation, ends: Sequence[AttemptEnd], now: float) -> dict[str, Any]:
    """Return `endings` by work, `gpu_hours` and `charge` of a job that is seen to have ended; `now` in Unix seconds."""
    spans = [_span(end.left, job, seen, now) for end in ends]
    charges = [_attempt_charge(end, span, len(ends)) for end, span in zip(ends, spans, strict=True)]
    at_work = spans
    if seen.end is JobEnd.LOST and all(started_at is None for started_at, _ in spans):
        # Nobody saw it start: it may have held its nodes all the time that it could.
        at_work = [(max(job.intended_at, now - 60 * job.request.wall_minutes), now)]
    charged = _processor_hours(job.request, at_work)
    hours, unused = itemise(charged, charges)
    endings = {
        end.attempt.work.name: {
            "cause": end.cause.value,
            "detail": end.detail,
            "checkpoint_step": end.left.checkpoint_step,
            "minutes_left": end.left.minutes_left,
            "started_at": started_at,
            "at": ended_at,
            "progress": _progress(end),
            "hours": hours.get(end.attempt.work.name, {}),
        }
        for end, (started_at, ended_at) in zip(ends, spans, strict=True)
    }
    has_gpus = job.request.gpus_per_node > 0
    charge = {"processor": "GPU" if has_gpus else "CPU", "hours": charged, "unused": unused}
    return {"endings": endings, "gpu_hours": charged if has_gpus else 0.0, "charge": charge}


def _span(left: Outcome, job: TrackedJob, seen: JobObservation, now: float) -> tuple[float | None, float]:
    """Start and end, Unix seconds, both by one clock: the scheduler's, or else the attempt's own."""
    if job.started_at is None and left.ending is not None:
        return left.ending.started_at, left.ending.ended_at
    return job.started_at, seen.ended_at if seen.ended_at is not None else now


def _processor_hours(request: JobRequest, spans: Sequence[tuple[float | None, float]]) -> float:
    """Hours of the whole job's GPUs, or CPUs where it has none; those that no attempt used are paid for too."""
    started = [started_at for started_at, _ in spans if started_at is not None]
    if not started:
        return 0.0
    seconds = max(0.0, max(ended_at for _, ended_at in spans) - min(started))
    return request.nodes * (request.gpus_per_node or request.cpus_per_node) * seconds / 3600


def _attempt_charge(end: AttemptEnd, span: tuple[float | None, float], num_attempts: int) -> AttemptCharge:
    started_at, ended_at = span
    if num_attempts > 1 and end.left.ending is not None:
        # In a pack its processors idle from its own end on.
        ended_at = min(ended_at, end.left.ending.ended_at)
    need = end.attempt.work.need
    processors = need.gpus or need.nodes * need.cpus_per_node
    times = end.left.report.times if end.left.report is not None else None
    return AttemptCharge(end.attempt.work.name, processors, started_at, ended_at, end.cause, times)


def _progress(end: AttemptEnd) -> dict[str, float]:
    """What the attempt has added to results and checkpoints, by unit; empty where it does not say."""
    report = end.left.report
    if report is None or not report.unit:
        return {}
    return {report.unit: report.done if end.cause is Cause.FINISHED else report.kept}
