"""A step's kernels as one CUDA graph: at small sizes launching them costs more than running them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class StepGraph:
    """Runs a step directly the first time, when kernels compile; then captures it; then replays it.

    What the kernels read must be in place before, at the same addresses each time. Where the static arguments differ
    from the last step's, the graph is dropped and captured anew.
    """

    def __init__(self) -> None:
        self._graph: torch.cuda.CUDAGraph | None = None
        self._static_arguments: Any = None

    def run(self, step: Callable[[], None], static_arguments: Any) -> None:
        """Run `step`, or replay it. `static_arguments` is what a captured step holds fixed."""
        if static_arguments != self._static_arguments:
            self.release()
            self._static_arguments = static_arguments
            step()
            return
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as a watchdog of collectives, may go on using the GPU.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                step()
            self._graph = graph
        self._graph.replay()

    def release(self) -> None:
        """Free the graph and its memory."""
        self._graph, self._static_arguments = None, None
