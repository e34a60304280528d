"""The time a run has trained: start-up, evaluation, records and checkpoints do not count, neither do their messages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from muloco_runner.distributed.traffic import Traffic


class TrainingClock:
    """Runs from `start` on, except while `paused`; what is sent while it does not run is no `traffic`."""

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
