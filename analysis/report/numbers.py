"""How numbers look on a page: one function a kind of quantity, always as many digits as mean something."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

NONE = "–"


def count(value: float) -> str:
    """29.3k, 1.05M, 3.07B, 61.4B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{_significant(value / size, 3)}{letter}"
    return _significant(value, 3)


def flops(value: float) -> str:
    return f"{value:.2e}".replace("e+", "e")


def loss(value: float) -> str:
    return f"{value:.4f}"


def ratio(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}".replace("e+", "e")


def exponent(value: float) -> str:
    return f"{value:.4f}"


def hours(value: float) -> str:
    """Three significant digits, never as a power of ten: 0.0123, 9.8, 1 210."""
    if value >= 1000:
        return integer(float(f"{value:.3g}"))
    return _significant(value, 3)


def number(value: float) -> str:
    return f"{value:.4g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def percent(value: float) -> str:
    return f"{100 * value:+.2f}%"


def spread(value: float) -> str:
    """A relative size without a sign."""
    return f"{100 * value:.2f}%"


def standard_error(value: float) -> str:
    """Two significant digits, at most six places."""
    return f"{value:.1g}" if value < 1e-5 else f"{value:.{max(2, 1 - math.floor(math.log10(value)))}f}"


def share(value: float) -> str:
    return f"{100 * value:.0f}%"


def integer(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f")


def seconds(value: float) -> str:
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"


FORMATS: dict[str, Callable[[float], str]] = {
    "count": count,
    "flops": flops,
    "loss": loss,
    "ratio": ratio,
    "exponent": exponent,
    "hours": hours,
    "number": number,
    "percent": percent,
    "spread": spread,
    "standard_error": standard_error,
    "share": share,
    "integer": integer,
    "seconds": seconds,
}


def show(value: Any, kind: str) -> str:
    """A cell: text as it is, a pair as an interval, nothing as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if kind == "text" or isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence):
        return f"[{', '.join(show(v, kind) for v in value)}]" if value else NONE
    return FORMATS[kind](float(value))


def _significant(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)) + 1e-9))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
