"""Times, counts and sizes as text."""

from __future__ import annotations

import time


def when(seconds: float | None) -> str:
    """Format Unix seconds as date and time in this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds is not None else "at no time"


def duration(seconds: float) -> str:
    """Format seconds in their two largest units: 2 h 5 min."""
    left = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        parts.append((count, unit))
    largest = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[largest : largest + 2] if count) or "0 s"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def about(seconds: float) -> str:
    """Format seconds in their largest unit, for a table: 2.1 h."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def size(num_params: int) -> str:
    """Format a number of parameters with three digits: 29.1k, 416m, 1.76b."""
    for unit, scale in (("b", 1e9), ("m", 1e6), ("k", 1e3)):
        if num_params >= scale:
            return f"{num_params / scale:.3g}{unit}"
    return str(num_params)


def in_bytes(number: int) -> str:
    """Format a number of bytes with three digits: 1.25 GB."""
    unit, size = next(((unit, size) for unit, size in _UNITS if number >= size), _UNITS[-1])
    return f"{number / size:,.3g} {unit}"


_UNITS = (("PB", 10**15), ("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
