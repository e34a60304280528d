"""A trace of some steps by torch's profiler, for chrome://tracing or Perfetto."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class StepProfile:
    """Traces the steps from the first to the last one asked for; does nothing where none are."""

    def __init__(self, steps: list[int] | None, file: Path, device: torch.device) -> None:
        self._first, self._last = steps or (0, -1)
        self._file, self._profile = file, None if steps is None else _new_profile(device)
        self._is_on = False

    def before_step(self, step: int) -> None:
        """Called before inner step `step`, counted from 1."""
        if self._profile is not None and self._first <= step <= self._last and not self._is_on:
            self._profile.start()
            self._is_on = True

    def after_step(self, step: int) -> None:
        """Called after it; the last one writes the trace."""
        if self._is_on and step >= self._last:
            self.end()

    def end(self) -> None:
        """Writes what has been traced, where nothing has been written yet."""
        if self._profile is None or not self._is_on:
            return
        self._profile.stop()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._file))
        self._profile, self._is_on = None, False


def _new_profile(device: torch.device) -> profile:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    return profile(activities=activities, record_shapes=True)
