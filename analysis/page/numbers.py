"""How numbers look on a page: one function a kind of quantity, always as many digits as mean something."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

NONE = "–"


def count(value: float) -> str:
    """29.3k, 1.05M, 3.07B, 61.4B; beyond thousands of trillions 8.24e16."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{_significant(value / size)}{letter}" if abs(value) < 1e15 else _power(value)
    return number(value)


def flops(value: float) -> str:
    return _power(value)


def loss(value: float) -> str:
    """Four decimals: what tells methods apart is a tenth of a percent."""
    return f"{value:.4f}" if abs(value) < 9999.5 else _power(value)


def number(value: float) -> str:
    """Three significant digits; a power of ten from 10,000 and below a thousandth."""
    if value == 0 or 1e-3 <= abs(value) < 9999.5:
        return _significant(value)
    return _power(value)


def ratio(value: float) -> str:
    """As `number`, with all of its digits, so that columns line up: 1.40, 0.951, 12.3."""
    if value == 0 or 1e-3 <= abs(value) < 9999.5:
        return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:.0f}"
    return _power(value)


def hours(value: float) -> str:
    """As `number`, by thousands: 0.0123, 9.8, 1 210."""
    return integer(float(f"{value:.3g}")) if 999.5 <= value < 9999.5 else number(value)


def percent(value: float) -> str:
    return f"{100 * value:+.2f}%" if abs(value) < 10 else f"{ratio(1 + value)} times"


def spread(value: float) -> str:
    """A relative size without a sign."""
    return f"{100 * value:.2f}%" if abs(value) < 10 else f"{ratio(value)} times"


def standard_error(value: float) -> str:
    """Two significant digits, six decimals at most."""
    if value < 1e-5:
        return f"{value:.1g}"
    return f"{value:.{max(2, 1 - math.floor(math.log10(value)))}f}" if value < 1e4 else _power(value)


def share(value: float) -> str:
    return f"{100 * value:.0f}%"


def integer(value: float) -> str:
    """Every digit below 100,000, then three and a power of ten."""
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) < 1e5 else _power(value)


def seconds(value: float) -> str:
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"


def size_in_bytes(value: float) -> str:
    """1.21 GB; powers of a thousand."""
    text = count(value) if abs(value) >= 1 else f"{value:.0f}"
    return f"{text[:-1]} {text[-1].replace('B', 'G')}B" if text[-1] in "kMBT" else f"{text} B"


FORMATS: dict[str, Callable[[float], str]] = {
    "count": count,
    "flops": flops,
    "loss": loss,
    "ratio": ratio,
    "hours": hours,
    "number": number,
    "percent": percent,
    "spread": spread,
    "standard_error": standard_error,
    "share": share,
    "integer": integer,
    "seconds": seconds,
    "bytes": size_in_bytes,
}


MOST_DECADES = 4
"""An interval that spans more says nothing."""
NOT_IDENTIFIED = f"not identified: its interval spans over {MOST_DECADES} decades"


def show(value: Any, kind: str) -> str:
    """A cell: text as it is, a pair as an interval, nothing as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if kind == "text" or isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence):
        return interval(value, kind) if value else NONE
    return FORMATS[kind](float(value))


def interval(bounds: Sequence[Any], kind: str) -> str:
    """Both ends in brackets; words in place of ends that say nothing."""
    if says_nothing(bounds):
        return f"[over {MOST_DECADES} decades]"
    return f"[{', '.join(show(bound, kind) for bound in bounds)}]"


def says_nothing(bounds: Any) -> bool:
    """Whether a positive interval spans more than `MOST_DECADES`."""
    if not isinstance(bounds, Sequence) or len(bounds) != 2 or None in bounds or isinstance(bounds, str):
        return False
    low, high = bounds
    return bool(low > 0 and high > low * 10**MOST_DECADES)


def estimate(value: float, ci: Sequence[Any] | None, kind: str) -> str:
    """A value with its interval, or that the data do not determine it."""
    if says_nothing(ci):
        return NOT_IDENTIFIED
    return show(value, kind) + (f" {interval(ci, kind)}" if ci else "")


def _significant(value: float, digits: int = 3) -> str:
    """Plain decimals without zeros at their end."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)) + 1e-9))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
