"""The progress of a sweep as lines of text for a log."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.engine.decide import AVOID_NODE_SECONDS
from sweeps.engine.run_states import STATUSES, RunState
from sweeps.engine.sweep_state import SlowNode, SweepState
from sweeps.formatting import duration, plural, when
from sweeps.node.last_words import last_words, why_not_done
from sweeps.store.folder import SweepFolder

if TYPE_CHECKING:
    from sweeps.controller import Tick

NO_ANSWER = "the scheduler does not answer: asking again"
_LOG_SECONDS = 10.0
"""Least time between two lines of counts."""


class Lines:
    """Called after each tick: prints counts that have changed, not too often, and why runs wait or are held."""

    def __init__(self, print_line: Callable[[str], None], cluster_dir: Path) -> None:
        self.print_line, self.cluster_dir, self.started_at = print_line, cluster_dir, time.monotonic()
        self.printed_at, self.printed = 0.0, ""
        self.held: set[str] = set()
        self.never: set[str] = set()
        self.slow: dict[str, SlowNode] | None = None

    def __call__(self, tick: Tick) -> None:
        for why, names in tick.state.counters.held.items():
            for name in names.keys() - self.held:
                self.held.add(name)
                self.print_line(held_line(tick.state.runs[name], why, self.cluster_dir))
        for why in tick.never:
            if why not in self.never:
                self.never.add(why)
                self.print_line(f"runs wait that can never run: {why}")
        # Those that are known from the start were said by an earlier launch.
        before = tick.state.slow_nodes if self.slow is None else self.slow
        self.slow = dict(tick.state.slow_nodes)
        for node, slow in self.slow.items():
            if before.get(node) != slow:
                self.print_line(slow_line(node, slow))
        note = tick.waits_for if tick.queue_read else NO_ANSWER
        line = summary(tick.state) + (f"; {note}" if note else "")
        over = tick.state.is_over
        if line != self.printed and (over or time.monotonic() - self.printed_at > _LOG_SECONDS):
            self.printed, self.printed_at = line, time.monotonic()
            why = "" if note else _waiting_for(tick)
            self.print_line(f"{duration(time.monotonic() - self.started_at):>10}  {line}{why}")


def _waiting_for(tick: Tick) -> str:
    """Return what the first of the waiting runs wait for, where it is known."""
    for shape, verdict in tick.plan.verdicts.items():
        if verdict.why and tick.state.waiting.get(shape):
            return f"; waiting for {verdict.why}"
    return ""


def held_line(run: RunState, why: str, cluster_dir: Path) -> str:
    """Return one line on a held run: the rule that held it, and its last attempt's own words."""
    if not run.is_held_by_attempt and run.attempts:
        return f"{run.work.name} held: {why_not_done(run, cluster_dir)}"
    words = last_words(run, cluster_dir)
    return f"{run.work.name} held: {why}" + (f": {words}" if words else f"; its folder is {run.work.folder}")


def slow_line(node: str, slow: SlowNode) -> str:
    """Return one line on a slow node: what was seen there, and until when it is avoided."""
    return (
        f"node {node}: {slow.run} was {slow.factor:.1f} times slower there than its like elsewhere; "
        f"no attempt is sent there before {when(slow.at + AVOID_NODE_SECONDS)}"
    )


def after_interrupt(state: SweepState, jobs_go_on: bool, folder: SweepFolder) -> str:
    """Return what a person who has pressed Ctrl-C must know of what goes on without them."""
    jobs = len(state.jobs)
    if not jobs_go_on or not jobs:
        return "stopped; the same command continues"
    return (
        f"stopped; {plural(jobs, 'job')} of the scheduler's go on without it. The same command continues; "
        f"`muloco-sweep cancel {shlex.quote(str(folder.root))} --sweep {shlex.quote(folder.name)} --all` ends them"
    )


def summary(state: SweepState) -> str:
    """Return the counts of runs by status, as one line."""
    counts = state.counts
    parts = [f"{counts[word]} {word}" for word in STATUSES if counts[word]]
    if state.counters.resubmitted:
        parts.append(f"{state.counters.resubmitted} resubmitted")
    return f"{len(state.runs)} runs: " + ", ".join(parts)
