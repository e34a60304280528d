"""The layout of the float64 vector of hyper-parameters that the kernels read on the device.

On the device, because a captured graph replays with whatever the vector holds then.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from muloco_runner.muon_rule.conventions import gradient_weight
from muloco_runner.optimizers.orthogonalize.triton.device_tables import DeviceTable

LR = tl.constexpr(0)
MOMENTUM = tl.constexpr(1)
GRADIENT_WEIGHT = tl.constexpr(2)
WEIGHT_DECAY = tl.constexpr(3)
CLIP = tl.constexpr(4)
"""Factor on every gradient."""
BETA1 = tl.constexpr(5)
BETA2 = tl.constexpr(6)
EPS = tl.constexpr(7)
NUM_HYPER = 8


class HyperParameters(DeviceTable):
    """The hyper-parameters of one parameter group."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(NUM_HYPER, torch.float64, device)

    def fill(self, group: dict[str, Any], clip: Tensor | None) -> None:
        """Copy the hyper-parameters of `group` over; `clip` is 0-D, on the device, or None for 1."""
        mu = group["momentum"]
        weight = gradient_weight(group["momentum_form"], mu)
        self.refresh([group["lr"], mu, weight, group["weight_decay"], 1.0, *group["betas"], group["eps"]])
        if clip is not None:
            self.values[CLIP.value].copy_(clip)
            self._last = []
