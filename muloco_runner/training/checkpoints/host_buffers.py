"""Copies of a state's tensors in host memory, from which a checkpoint is written while training goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class HostBuffers:
    """The memory is kept from one checkpoint to the next.

    Pinned where the tensors live on a GPU, so that the copy runs at the link's speed.
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._buffers: dict[str, Tensor] = {}

    def copy(self, state: Any, path: str = "") -> Any:
        """`state` (nested dicts, lists and plain values) with every tensor copied; call `wait` before reading it."""
        if isinstance(state, Tensor):
            buffer = self._buffers.get(path)
            if buffer is None or buffer.shape != state.shape or buffer.dtype != state.dtype:
                buffer = torch.empty(state.shape, dtype=state.dtype, pin_memory=self._pinned)
                self._buffers[path] = buffer
            return buffer.copy_(state.detach(), non_blocking=self._pinned)
        if isinstance(state, dict):
            return {key: self.copy(value, f"{path}/{key}") for key, value in state.items()}
        if isinstance(state, list | tuple):
            return type(state)(self.copy(value, f"{path}/{number}") for number, value in enumerate(state))
        return state

    def wait(self) -> None:
        """Waits until all copies are complete."""
        if self._pinned:
            torch.cuda.synchronize()
