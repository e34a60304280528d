"""The machine under check, and times on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Machine:
    """A device, and whether sizes are those of a GPU or tiny."""

    device: torch.device

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def milliseconds(self, call: Callable[[], object], repeats: int = 10) -> float:
        """Median time of `call`, after two that warm up; on a GPU by its own events."""
        call()
        call()
        self.wait()
        return statistics.median(self.once(call) for _ in range(repeats))

    def once(self, call: Callable[[], object]) -> float:
        """Milliseconds of one `call`."""
        if not self.is_gpu:
            began = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - began)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        self.wait()
        return float(begin.elapsed_time(end))

    def graphed(self, call: Callable[[], object]) -> Callable[[], object]:
        """Return `call` as a CUDA graph, so that launches take no time; on a CPU `call` itself."""
        if not self.is_gpu:
            return call
        call()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            call()
        return graph.replay
