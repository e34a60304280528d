"""Times as people and SLURM write them, in minutes."""

from __future__ import annotations

import math
import re


def parse_minutes(text: str) -> float | None:
    """Minutes of "90", "90:30", "1:30:00", "2-12", "2-12:30" or "2-12:30:00", as SLURM reads them: minutes,
    minutes:seconds, hours:minutes:seconds, and the same after days with hours first. None for anything else."""
    text = text.strip()
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return None
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 1:
        hours, minutes, seconds = 0, parts[0], 0
    else:
        hours, minutes, seconds = (0, *parts)[-3:]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def read_minutes(value: object) -> float | None:
    """Minutes of a setting: a number of them, or text that `parse_minutes` reads; None for anything else."""
    if isinstance(value, str):
        return parse_minutes(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]
