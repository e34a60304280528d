"""Memory that several users fill one after the other."""

from __future__ import annotations

import torch
from torch import Tensor


class Arena:
    """One memory that the workspaces of a device use in turn: as much as the largest needs."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def allocate(self, nbytes: int, device: torch.device) -> Tensor:
        """Return `nbytes` bytes (uint8) on `device`. A later call may return the same ones."""
        if self._memory is None or self._memory.nbytes < nbytes or self._memory.device != device:
            self._memory = torch.empty(nbytes, dtype=torch.uint8, device=device)
        return self._memory[:nbytes]
