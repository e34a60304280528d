"""How numbers of the study's page are written."""

from __future__ import annotations

import math


def percent(value: float | None, sign: bool = True) -> str:
    """A share with its sign, .012 as +1.20%; none where there is no finite one."""
    if value is None or not math.isfinite(value):
        return "none"
    return f"{100 * value:{'+' if sign else ''}.2f}%"


def thousands(num_params: int) -> str:
    """29,120 as 29k, as the sizes are called."""
    return f"{num_params / 1000:.0f}k"
