"""How long a run has trained: start-up, evaluation, records and checkpoints do not count."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class TrainingClock:
    """Runs from `start` on, except while `paused`."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        """Up to the last pause, of all attempts."""
        self._device = device
        self._started_at = 0.0

    def start(self) -> None:
        self._started_at = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Waits for the device first: work that is only queued there has not been done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds += time.perf_counter() - self._started_at
        yield
        self.start()
