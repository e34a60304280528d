"""A trace of some steps by torch's profiler, for chrome://tracing or Perfetto."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class StepProfile:
    """Traces the steps from the first to the last one asked for; does nothing where none are."""

    def __init__(self, steps: list[int] | None, file: Path, device: torch.device) -> None:
        self._steps = range(0) if steps is None else range(steps[0], steps[1] + 1)
        self._file, self._device = file, device
        self._running: profile | None = None

    def before_step(self, step: int) -> None:
        """Called before inner step `step`, counted from 1."""
        if step in self._steps and self._running is None:
            self._running = _new_profile(self._device)
            self._running.start()

    def after_step(self, step: int) -> None:
        """Called after it; the last one writes the trace."""
        if step + 1 not in self._steps:
            self.end()

    def end(self) -> None:
        """Writes what has been traced and not been written yet; called where training ends too."""
        if self._running is None:
            return
        self._running.stop()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._running.export_chrome_trace(str(self._file))
        self._running = None


def _new_profile(device: torch.device) -> profile:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    return profile(activities=activities, record_shapes=True)
