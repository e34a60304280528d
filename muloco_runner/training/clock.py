"""The time a run has trained, over all attempts, and what one attempt spends its time on."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from muloco_runner.distributed.traffic import Traffic
from muloco_runner.record import AttemptTimes


class TrainingClock:
    """The time a run has trained: start-up, evaluation, records and checkpoints do not count, nor do their messages.

    Runs from `start` on, except while `paused`; what is sent while it does not run is no `traffic`.
    """

    def __init__(self, device: torch.device, traffic: Traffic) -> None:
        self.seconds = 0.0
        """Seconds up to the last pause, over all attempts."""
        self._device, self._traffic = device, traffic
        self._started_at = 0.0
        traffic.restart()
        traffic.is_paused = True

    def start(self) -> None:
        self._traffic.is_paused = False
        self._started_at = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Waits for the device first: work that is only queued there has not been done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds += time.perf_counter() - self._started_at
        self._traffic.is_paused = True
        yield
        self.start()


class Phases:
    """Times of one attempt on one rank. Measure only where the device has been waited for (`TrainingClock.paused`)."""

    def __init__(self) -> None:
        self._first_step: tuple[float, float] | None = None
        """Unix seconds, and the monotonic clock's."""
        self._early_compile_seconds = 0.0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._measured_since: float | None = None
        """When what is being measured began, on the monotonic clock."""
        self._copied = self._saved = 0.0
        """Seconds of training that the newest copied state holds, and the newest complete checkpoint."""

    @contextlib.contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Counts the time within as evaluation, saving or loading."""
        self._measured_since = began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - began
            self._measured_since = None

    def begin_training(self) -> None:
        """Called before the first step."""
        self._first_step = time.time(), time.monotonic()
        self._early_compile_seconds = _compile_seconds()

    def state_copied(self) -> None:
        """A checkpoint of the state as it is now has begun."""
        self._copied = self._training_seconds()

    def checkpoint_complete(self) -> None:
        self._saved = self._copied

    def times(self, is_saved: bool, ended: bool) -> AttemptTimes:
        """As of now; `is_saved` where a checkpoint holds the newest step, `ended` as in `AttemptTimes`."""
        return AttemptTimes(
            as_of=time.time(),
            first_step_at=self._first_step[0] if self._first_step is not None else None,
            compile_seconds=_compile_seconds(),
            early_compile_seconds=self._early_compile_seconds,
            evaluation_seconds=self._seconds["evaluation"],
            saving_seconds=self._seconds["saving"],
            loading_seconds=self._seconds["loading"],
            unsaved_seconds=0.0 if is_saved else max(0.0, self._training_seconds() - self._saved),
            ended=ended,
        )

    def _training_seconds(self) -> float:
        if self._first_step is None:
            return 0.0
        compiling = _compile_seconds() - self._early_compile_seconds
        others = self._seconds["evaluation"] + self._seconds["saving"] + compiling
        until = time.monotonic() if self._measured_since is None else self._measured_since
        return until - self._first_step[1] - others


def _compile_seconds() -> float:
    """Of `torch.compile` in this process so far, by its own count; 0 where it was never used."""
    if "torch._dynamo" not in sys.modules:
        return 0.0
    from torch._dynamo.utils import calculate_time_spent

    return float(calculate_time_spent().get("total_wall_time", 0.0))
