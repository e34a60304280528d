"""The progress of a sweep as lines of text for a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from sweeps.controller import Tick
from sweeps.engine.run_states import STATUSES
from sweeps.engine.sweep_state import SweepState
from sweeps.formatting import duration

NO_ANSWER = "the scheduler does not answer: asking again"
_LOG_SECONDS = 10.0
"""Least time between two lines of counts."""


class Lines:
    """Called after each tick: prints the counts when they have changed, not too often, and every run that is held."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        self.print_line, self.started_at = print_line, time.monotonic()
        self.printed_at, self.printed = 0.0, ""
        self.held: set[str] = set()

    def __call__(self, tick: Tick) -> None:
        for why, names in tick.state.counters.held.items():
            for name in names.keys() - self.held:
                self.held.add(name)
                self.print_line(f"{name} held: {why}")
        note = tick.waits_for if tick.queue_read else NO_ANSWER
        line = summary(tick.state) + (f"; {note}" if note else "")
        over = tick.state.is_over
        if line != self.printed and (over or time.monotonic() - self.printed_at > _LOG_SECONDS):
            self.printed, self.printed_at = line, time.monotonic()
            self.print_line(f"{duration(time.monotonic() - self.started_at):>10}  {line}")


def summary(state: SweepState) -> str:
    """Return the counts of runs by status, as one line."""
    counts = state.counts
    parts = [f"{counts[word]} {word}" for word in STATUSES if counts[word]]
    if state.counters.resubmitted:
        parts.append(f"{state.counters.resubmitted} resubmitted")
    return f"{len(state.runs)} runs: " + ", ".join(parts)
