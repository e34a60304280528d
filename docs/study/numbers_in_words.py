"""How numbers of the study's page are written."""

from __future__ import annotations

import math

from analysis.page import numbers


def percent(value: float | None, sign: bool = True) -> str:
    """A share with its sign, .012 as +1.20%; none where there is no finite one."""
    if value is None or not math.isfinite(value):
        return "none"
    return numbers.percent(value) if sign else numbers.spread(value)


def thousands(num_params: int) -> str:
    """29,120 as 29k, as the sizes are called."""
    return f"{num_params / 1000:.0f}k"
