"""Why runs are where they are: the reason of one run, and its history in sentences. Pure: state in, text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sweeps.cli.goodput_lines import goodput_lines, goodput_of
from sweeps.cli.status import Basis, TimeLeft
from sweeps.engine.counters import Counters
from sweeps.engine.decide import next_attempt_number
from sweeps.engine.job_needs import minutes_left, wall_minutes
from sweeps.engine.policy import Cause
from sweeps.engine.quota import Verdict, VerdictKind
from sweeps.engine.run_states import AttemptState, RunState
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.works import shape_of
from sweeps.formatting import duration, plural, when
from sweeps.node.disk_space import place_in


def why(run: RunState, state: SweepState, verdicts: Mapping[Any, Verdict], now: float, is_controlled: bool) -> str:
    """Return why a run is held or waits; empty where there is nothing to explain. `verdicts` are by shape."""
    if run.held is not None:
        return run.held
    if not run.is_waiting:
        return ""
    general = why_nothing_starts(state, is_controlled)
    if general:
        return general
    if run.not_before > now:
        return _pause_text(run)
    if run.work.trunk is not None and state.is_behind(run.work.name):
        return run.work.trunk.wait_words
    return _verdict_text(verdicts.get(shape_of(run.work)))


def _pause_text(run: RunState) -> str:
    if run.attempts and run.attempts[-1].cause is Cause.DISK_FULL:
        place = place_in(run.attempts[-1].detail)
        return f"waits for disk space ({place}): tried again after pauses of up to an hour"
    return f"is retried after a pause (last attempt: {_last_cause(run)}), at {when(run.not_before)}"


def why_nothing_starts(state: SweepState, is_controlled: bool) -> str:
    """Return a reason that holds for every waiting run, or nothing."""
    if not is_controlled:
        return "no controller is running: launch the sweep again"
    if state.paused:
        return "the sweep is paused: `muloco-sweep resume`"
    return ""


def why_they_wait(
    counters: Counters, state: SweepState, verdicts: Mapping[Any, Verdict], now: float, is_controlled: bool
) -> dict[str, int]:
    """Count the waiting runs of `counters` by reason."""
    general = why_nothing_starts(state, is_controlled)
    if general:
        return {general: counters.counts["waiting"]} if counters.counts["waiting"] else {}
    found: Counter[str] = Counter()
    for shape, count in counters.fresh.items():
        if count:
            found[_verdict_text(verdicts.get(shape))] += count
    for name in counters.tried:
        found[why(state.runs[name], state, verdicts, now, is_controlled)] += 1
    return dict(found.most_common())


def _verdict_text(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    return verdict.why if verdict.kind is VerdictKind.WAIT else f"can never run: {verdict.why}"


def row(run: RunState, reason: str, left: TimeLeft | None) -> dict[str, Any]:
    """Return one run's values for `--json`."""
    return {
        "run": run.work.name,
        "standing": run.status,
        "why": reason,
        "folder": run.work.folder,
        "expected_minutes": round(run.work.need.expected_minutes, 3),
        "minutes_left": left and round(left.minutes, 3),
        "minutes_left_by": left and left.by.value,
        "labels": run.work.labels,
        "trunk": run.work.trunk and {"run": run.work.trunk.run, "step": run.work.trunk.step},
        "attempts": [
            {
                "number": attempt.number,
                "job": attempt.tag,
                "allocation": attempt.allocation,
                "nodes": list(attempt.nodes),
                "started_at": attempt.started_at,
                "ended_at": attempt.ended_at,
                "cause": attempt.cause.value if attempt.cause else None,
                "detail": attempt.detail,
                "checkpoint_step": attempt.checkpoint_step,
                "hours": attempt.hours,
            }
            for attempt in run.attempts
        ],
    }


def explain(
    run: RunState,
    reason: str,
    words: str,
    now: float,
    longest_minutes: float,
    retries: int,
    command: str,
    left: TimeLeft | None = None,
    added: str = "",
) -> list[str]:
    """Return the whole history of a run and what happens next, one sentence a line.

    `words` are the newest attempt's last (`last_words`); `longest_minutes` are the most that a job may ask for;
    `retries` is the cluster's setting, `command` the root and the sweep for commands that are proposed, `left` how long
    the run has yet to work; `added` says why it was added to those of the sweep's file.
    """
    labels = ", ".join(f"{key}={value}" for key, value in run.work.labels.items())
    need = run.work.need
    processors = plural(need.gpus_per_node, "GPU") if need.gpus_per_node else plural(need.cpus_per_node, "CPU")
    each = " each" if need.nodes > 1 else ""
    lines = [
        f"Run {run.work.name} ({labels}).",
        f"It needs {plural(need.nodes, 'node')} with {processors}{each} for about "
        f"{duration(60 * need.expected_minutes)}.",
    ]
    if run.work.trunk is not None:
        trunk = run.work.trunk
        lines.append(
            f"It is a branch: it goes on from step {trunk.step:,} of run {trunk.run}, which spares it about "
            f"{duration(60 * trunk.spared_minutes(need.expected_minutes))}."
        )
    if added:
        lines.append(f"It was added because {added}.")
    lines += [_sentence(attempt, now) for attempt in run.attempts]
    if not run.attempts:
        lines.append("It has not been tried by this sweep.")
    elif words and not run.done and not run.in_flight:
        # What its attempt's sentence holds already is not said twice.
        said = words.removeprefix(f"{run.attempts[-1].detail}; see ")
        lines.append(f"Its output: {said}" if said != words else f"Its last attempt said: {words}")
    lines += goodput_lines(goodput_of([run]), "of its attempts")
    return [*lines, *_next(run, reason, longest_minutes, retries, command, left)]


def _sentence(attempt: AttemptState, now: float) -> str:
    where = f" on {', '.join(attempt.nodes)}" if attempt.nodes else ""
    head = f"Attempt {attempt.number} (job {attempt.tag}, {attempt.allocation})"
    if attempt.cause is None and attempt.started_at is None:
        return f"{head} was submitted {when(attempt.intended_at)} and waits for the scheduler."
    start = f" started {when(attempt.started_at)}" if attempt.started_at is not None else " never started"
    if attempt.cause is None:
        assert attempt.started_at is not None
        return f"{head}{start}{where} and has been running for {duration(now - attempt.started_at)}."
    took = ""
    if attempt.started_at is not None and attempt.ended_at is not None:
        took = f" after {duration(attempt.ended_at - attempt.started_at)}"
    detail = f": {attempt.detail}" if attempt.detail else ""
    saved = f" Its last checkpoint is at step {attempt.checkpoint_step}." if attempt.checkpoint_step else ""
    return f"{head}{start}{where} and ended{took}, {attempt.cause.value}{detail}.{saved}"


def _next(
    run: RunState, reason: str, longest_minutes: float, retries: int, command: str, left: TimeLeft | None
) -> list[str]:
    if run.done:
        return ["It is done."]
    if run.is_stopped:
        return [
            "That is its result: it is not tried again by itself. To let it go on to its end:",
            f"  muloco-sweep retry {command} run={run.work.name}",
        ]
    if run.held is not None:
        return [f"It is held ({run.held}). To try it again:", f"  muloco-sweep retry {command} run={run.work.name}"]
    if run.in_flight:
        return [f"Next: the end of attempt {run.attempts[-1].number}{_in(left)}. {_if_it_fails(run, retries)}"]
    wall = duration(60 * wall_minutes(run, longest_minutes, minutes_left(run)))
    because = f"; it waits: {reason}" if reason else ""
    return [f"Next: attempt {next_attempt_number(run)}, asking for {wall}{because}."]


def _in(left: TimeLeft | None) -> str:
    whose = {Basis.PROGRESS: "its own progress", Basis.ESTIMATE: "an estimate"}
    return f", in about {duration(60 * left.minutes)} by {whose[left.by]}" if left is not None else ""


def _if_it_fails(run: RunState, retries: int) -> str:
    crashed = sum(attempt.cause is Cause.CRASH for attempt in run.attempts if attempt.number > run.released_after)
    left = max(0, retries - crashed)
    return f"If it crashes, it is tried {plural(left, 'more time')} and then held."


def _last_cause(run: RunState) -> str:
    cause = run.attempts[-1].cause if run.attempts else None
    return cause.value if cause is not None else "none"
