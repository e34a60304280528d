"""A step's launches as one CUDA graph: at small sizes launching costs more than the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class StepGraph:
    """Runs launches directly the first time, when kernels compile; then captures them; then replays.

    What the launches read must be in place before, at the same addresses each time. `baked` tells when they would
    differ: then all begins anew.
    """

    def __init__(self) -> None:
        self._graph: torch.cuda.CUDAGraph | None = None
        self._baked: Any = None

    def run(self, launch: Callable[[], None], baked: Any) -> None:
        """The launches, or their replay."""
        if baked != self._baked:
            self.release()
            self._baked = baked
            launch()
            return
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as a watchdog of collectives, may go on using the GPU.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                launch()
            self._graph = graph
        self._graph.replay()

    def release(self) -> None:
        """Frees the graph and its memory."""
        self._graph, self._baked = None, None
