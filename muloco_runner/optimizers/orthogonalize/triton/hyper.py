"""Places of the hyper-parameters in the float64 vector on the device that the kernels read.

On the device, because a captured graph replays with whatever the vector holds then.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton.language as tl

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
