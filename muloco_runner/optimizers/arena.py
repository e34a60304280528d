"""Memory that several users fill one after another."""

from __future__ import annotations

import torch
from torch import Tensor


class Arena:
    """Memory that workspaces of one device use in turn: as much as the largest needs."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def take(self, nbytes: int, device: torch.device) -> Tensor:
        """That many bytes. What is taken later may be the same ones."""
        if self._memory is None or self._memory.nbytes < nbytes or self._memory.device != device:
            self._memory = torch.empty(nbytes, dtype=torch.uint8, device=device)
        return self._memory[:nbytes]
