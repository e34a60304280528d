"""What an attempt itself has left behind, whatever the scheduler says of its job."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from muloco_runner.record import AttemptTimes


@dataclass(frozen=True)
class Ending:
    """The exit record that an attempt leaves itself: no scheduler can rewrite it."""

    exit_code: int
    host: str
    started_at: float
    ended_at: float
    """Unix seconds."""
    stopped_early: bool = False
    """Whether it was asked to stop long before its time limit, which means that it was preempted."""
    by_watcher: bool = False
    """Whether `exit_code` is from what watches the attempt, which could not speak for itself: never the work's own."""


@dataclass(frozen=True)
class Headway:
    """Work done so far and the time that it took, both counted from anywhere: two readings give a speed."""

    done: float
    """In units that are the same for all works that are alike (`Reports.likeness`): tokens, or steps."""
    seconds: float


@dataclass(frozen=True)
class Outcome:
    finished: bool
    """The work has its result: by this attempt or another."""
    ending: Ending | None = None
    """None where the attempt has not ended, or was killed."""
    checkpoint_step: int = 0
    """Last step that a resume would start from; 0 for work that has no checkpoints."""
    minutes_left: float | None = None
    """Minutes from the last checkpoint to the end at the measured speed; None where that is not known."""
    message: str = ""
    """The attempt's one line on how it failed."""
    heartbeat_at: float | None = None
    """Unix seconds by the file system's clock; None for work that has no heartbeat."""
    report: Progress | None = None
    """The last word of this very attempt; None where it has said nothing."""


@dataclass(frozen=True)
class Progress:
    """How far a piece of work has come, as its newest attempt reports it."""

    attempt: int
    heartbeat_at: float | None = None
    """Unix seconds by the file system's clock."""
    checkpoint_step: int = 0
    minutes_left: float | None = None
    """Minutes from the last checkpoint to the end; None where that is not known."""
    message: str = ""
    """One line on how the attempt failed."""
    share: float | None = None
    """Done so far, of the whole; None for work that does not say."""
    share_before: float | None = None
    """Of the whole, what this attempt began from; None where it has not begun, or does not say."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What it measures on its way, such as a loss."""
    done: float = 0.0
    """What this attempt has done so far, in units of `unit`."""
    kept: float = 0.0
    """Of this, what another attempt would go on from."""
    unit: str = ""
    """What is counted: tokens, or steps of programs; empty where nothing is."""
    times: AttemptTimes | None = None
    """What the attempt has spent its time on; None where it does not say."""
    headway: Headway | None = None
    """None where nothing has been measured."""

    def minutes_to_end(self, started_at: float, now: float) -> float | None:
        """From now on at this attempt's speed so far; None where it does not say how far it is, or has only begun.

        `started_at`, when its job started, counts where the attempt has not measured when it took its first step; both
        in Unix seconds.
        """
        if self.share is None or self.share_before is None or self.heartbeat_at is None:
            return None
        since, until = started_at, self.heartbeat_at
        if self.times is not None:
            since, until = self.times.first_step_at or math.inf, self.times.as_of
        gained = self.share - self.share_before
        if gained <= 0 or until <= since:
            return None
        seconds = max(0.0, 1.0 - self.share) / gained * (until - since)
        return max(0.0, seconds - max(0.0, now - self.heartbeat_at)) / 60
