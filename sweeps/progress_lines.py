"""How a sweep gets on, as lines of text for a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from sweeps.controller import Tick
from sweeps.engine.runs import STANDINGS
from sweeps.engine.state import SweepState
from sweeps.formatting import duration

NO_ANSWER = "the scheduler does not answer: it is asked again"
_LOG_SECONDS = 10.0


class Lines:
    """One line when something has changed, not too often, and each run that is held."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.began, self.said_at, self.said = say, time.monotonic(), 0.0, ""
        self.held: set[str] = set()

    def __call__(self, tick: Tick) -> None:
        for why, names in tick.state.counters.held.items():
            for name in names.keys() - self.held:
                self.held.add(name)
                self.say(f"{name} held: {why}")
        line = summary(tick.state) + ("" if tick.queue_read else f"; {NO_ANSWER}")
        over = tick.state.is_over
        if line != self.said and (over or time.monotonic() - self.said_at > _LOG_SECONDS):
            self.said, self.said_at = line, time.monotonic()
            self.say(f"{duration(time.monotonic() - self.began):>10}  {line}")


def summary(state: SweepState) -> str:
    """Counts of runs by state, in one line."""
    counts = state.counts
    words = [f"{counts[word]} {word}" for word in STANDINGS if counts[word]]
    if state.counters.resubmitted:
        words.append(f"{state.counters.resubmitted} resubmitted")
    return f"{len(state.runs)} runs: " + ", ".join(words)
