"""Tables on the device of what changes from step to step: hyper-parameters, and the addresses of tensors.

Small copies refresh them before a step's launches. So a captured graph can replay those launches as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class DeviceTable:
    """A vector on a device, and what it was last filled with."""

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.zeros(length, dtype=dtype, device=device)
        self._last: list[float] | list[int] = []

    def refresh(self, values: list[float] | list[int]) -> None:
        """Copy the values over if they have changed, without waiting for it."""
        if values != self._last:
            on_gpu = self.values.device.type == "cuda"
            # Pinned memory of its own each time: a copy under way is never overwritten.
            host = torch.tensor(values, dtype=self.values.dtype, pin_memory=on_gpu)
            self.values.copy_(host, non_blocking=True)
            self._last = values


class Addresses(DeviceTable):
    """Addresses of tensors, 0 for none."""

    def __init__(self, length: int, device: torch.device) -> None:
        super().__init__(length, torch.int64, device)
        self.aligned = True
        """Whether 16 bytes may be read at once from each."""

    def point_to(self, tensors: Sequence[Tensor | None]) -> None:
        """Fill the table with the addresses of contiguous tensors, which the caller keeps alive."""
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        self.aligned = all(address % 16 == 0 for address in addresses)
        self.refresh(addresses)
