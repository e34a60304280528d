"""Cells -> numbers: `124M`, `1.5B tokens`, `2e10`, `1 250 000`, `3,21`, `12 GFLOPs`, `NaN`.

Whether a comma is a decimal mark or parts thousands is decided once a file, from all cells that must be numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from muloco_runner.config import ConfigError

Decimal = Literal["point", "comma"]
Kind = Literal["count", "flops", "seconds", "bytes", "bits", "loss", "number"]

OK, MISSING, NOT_A_NUMBER, NOT_FINITE = range(4)
"""State of a cell. An empty one is `MISSING`, and so is NaN but in a loss, where it says that the run diverged."""

_MISSING = {"", "na", "n/a", "<na>", "#n/a", "null", "none", "nil", "missing", "-", "--", "–", "—", "?"}
_NAN = {"nan", "-nan", "1.#qnan", "1.#ind"}
_INFINITE = {
    "inf",
    "infinity",
    "+inf",
    "-inf",
    "+infinity",
    "-infinity",
    "1.#inf",
}
_NUMBER = re.compile(r"([+-]?)((?:\d[\d.,'’_\s]*\d|\d)\.?|[.,]\d+)(?:e([+-]?\d+))?\s*(.*)", re.IGNORECASE | re.DOTALL)
_TIMES_TEN = re.compile(r"\s*[×x*]\s*10\s*(?:\^|\*\*)\s*", re.IGNORECASE)
_DECIMAL = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21}
_BINARY = {"ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}
_DAY = 86400.0


def _units_of(words: Iterable[str], multipliers: dict[str, float]) -> dict[str, float]:
    return {f"{letter}{word}": size for letter, size in {"": 1.0, **multipliers}.items() for word in ("", *words)}


_COUNTS = _units_of(("params", "param", "parameters", "tokens", "token", "tok"), {
    **{key: _DECIMAL[key] for key in "kmgbt"}, **_BINARY, "thousand": 1e3, "million": 1e6, "billion": 1e9,
    "trillion": 1e12, "mn": 1e6, "bn": 1e9, "mm": 1e6,
})  # fmt: skip
_FLOPS = {
    **_units_of(("flops", "flop"), {key: value for key, value in _DECIMAL.items() if key != "b"}),
    "pf-days": 1e15 * _DAY, "pflop/s-days": 1e15 * _DAY, "petaflop/s-days": 1e15 * _DAY, "pfs-days": 1e15 * _DAY,
    "zettaflops": 1e21, "exaflops": 1e18, "petaflops": 1e15, "teraflops": 1e12, "gigaflops": 1e9,
}  # fmt: skip
_SECONDS = {
    "": 1.0, "ms": 1e-3, "s": 1.0, "sec": 1.0, "secs": 1.0, "seconds": 1.0, "second": 1.0, "m": 60.0, "min": 60.0,
    "mins": 60.0, "minutes": 60.0, "minute": 60.0, "h": 3600.0, "hr": 3600.0, "hrs": 3600.0, "hours": 3600.0,
    "hour": 3600.0, "d": _DAY, "day": _DAY, "days": _DAY,
}  # fmt: skip
_BYTES = {
    "bytes": 1.0, "byte": 1.0,
    **_units_of(("b",), {**{key: _DECIMAL[key] for key in "kmgtp"}, **_BINARY}),
}  # fmt: skip
UNITS: dict[Kind, dict[str, float]] = {
    "count": _COUNTS,
    "flops": _FLOPS,
    "seconds": _SECONDS,
    "bytes": _BYTES,
    "bits": {"": 1.0, "bit": 1.0, "bits": 1.0},
    "loss": {"": 1.0, "nats": 1.0, "nat": 1.0, "nats/token": 1.0},
    "number": {"": 1.0},
}
"""What may follow a number of each kind, in lower case, and what it multiplies it by."""


LARGEST_EXACT = 2**53
"""From here on neighbouring whole numbers are one and the same float."""


def written(value: float) -> str:
    """The number with all digits that tell it from others, and no more: 0.001, 20240101, 0.1234567."""
    short = f"{value:.6g}"
    if float(short) == value and (value == 0 or 1e-4 <= abs(value) < 1e6):
        return short
    return f"{value:.0f}" if value.is_integer() and abs(value) < LARGEST_EXACT else repr(float(value))


@dataclass(frozen=True)
class Numbers:
    """Values with the state of each cell."""

    values: NDArray[np.float64]
    """NaN where the state is not `OK`."""
    states: NDArray[np.int8]


def to_numbers(cells: pd.Series[Any], kind: Kind, decimal: Decimal) -> Numbers:
    """The cells of a column; text by the rules of its kind."""
    if pd.api.types.is_numeric_dtype(cells.dtype):
        values = cells.to_numpy(dtype=float, na_value=math.nan)
        states = np.where(np.isnan(values), MISSING, np.where(np.isinf(values), NOT_FINITE, OK)).astype(np.int8)
        return Numbers(np.where(states == OK, values, math.nan), states)
    codes, unique = pd.factorize(cells.astype(object), use_na_sentinel=True)
    parsed = [parse_cell(cell, kind, decimal) for cell in unique]
    numbers = np.array([*(value for value, _ in parsed), math.nan], dtype=float)
    states = np.array([*(state for _, state in parsed), MISSING], dtype=np.int8)
    return Numbers(numbers[codes], states[codes])


def parse_cell(cell: Any, kind: Kind, decimal: Decimal) -> tuple[float, int]:
    """The number in one cell (NaN without one) and its state."""
    if isinstance(cell, (int, float, np.integer, np.floating)):
        value = float(cell)
        return (value, OK) if math.isfinite(value) else (math.nan, MISSING if math.isnan(value) else NOT_FINITE)
    text = str(cell).strip().replace("−", "-").replace("\xa0", " ").replace("\u202f", " ").replace("\u2009", " ")
    word = text.lower()
    if word in _MISSING or (word in _NAN and kind != "loss"):
        return math.nan, MISSING
    if word in _INFINITE | _NAN:
        return math.nan, NOT_FINITE
    found = _NUMBER.fullmatch(_TIMES_TEN.sub("e", text))
    if found is None:
        return math.nan, NOT_A_NUMBER
    sign, body, exponent, unit = found.groups()
    digits = _digits(body, decimal)
    factor = UNITS[kind].get(re.sub(r"\s+", "", unit.lower()))
    if digits is None or factor is None:
        return math.nan, NOT_A_NUMBER
    value = float(f"{sign}{digits}e{exponent or 0}")
    # Multiplied in whole numbers where it can be: 124.5M is 124500000 and nothing beside it.
    return value * factor if factor < 1 or not math.isfinite(value) else _scaled(sign + digits, exponent, factor), OK


def _scaled(digits: str, exponent: str | None, factor: float) -> float:
    from fractions import Fraction

    if factor == 1.0:
        return float(f"{digits}e{exponent or 0}")
    return float(Fraction(digits) * Fraction(10) ** int(exponent or 0) * Fraction(factor))


def _digits(body: str, decimal: Decimal) -> str | None:
    """The digits of a number with a point as decimal mark; None where its marks are none of a number.

    No thousands are parted behind a leading zero: 0.001 in a file of decimal commas is no 1.
    """
    if re.search(r"[\s'’_]", body):
        parted = re.fullmatch(r"([1-9]\d{0,2}(?:([\s'’_])\d{3})(?:\2\d{3})*)([.,]\d+)?", body)
        if parted is None:
            return None
        body = re.sub(r"[\s'’_]", "", parted[1]) + (parted[3] or "")
    mark, thousands = (".", ",") if decimal == "point" else (",", ".")
    if thousands in body:
        if not re.fullmatch(rf"[1-9]\d{{0,2}}(?:{re.escape(thousands)}\d{{3}})+(?:{re.escape(mark)}\d*)?", body):
            return None
        body = body.replace(thousands, "")
    return body.replace(mark, ".") if body.count(mark) <= 1 else None


def has_marks(texts: Iterable[Any]) -> bool:
    """Whether some cell has a comma, or two points: then the marks of the whole file must be decided."""
    return any(isinstance(text, str) and ("," in text or text.count(".") > 1) for text in texts)


def decide_decimal(texts: Iterable[Any], said: Decimal | None) -> tuple[Decimal, str | None]:
    """The decimal mark of a file from all its numbers as text, and a note about it. `said` is what the user says.

    Raises `ConfigError` where cells contradict each other, or all of them could be read either way.
    """
    if said is not None:
        return said, f"decimal mark: {said}, as said"
    evidence: dict[str, str] = {}
    for text in texts:
        found = _NUMBER.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is not None and (sign := _mark_of(found[2])) is not None:
            evidence.setdefault(sign, text.strip())
    sure = [mark for mark in ("point", "comma") if mark in evidence]
    if len(sure) == 2:
        raise ConfigError(
            f"numbers are written in two ways, {evidence['point']!r} with a decimal point and {evidence['comma']!r} "
            "with a decimal comma: say --decimal point or --decimal comma"
        )
    if not sure and "either comma" in evidence:
        raise ConfigError(
            f"{evidence['either comma']!r} may have a decimal comma or one that parts thousands, and no cell of the "
            "file tells: say --decimal comma or --decimal point"
        )
    if sure == ["comma"]:
        # Points can only part thousands now; cells where they cannot are no numbers and are named one by one.
        return "comma", f"decimal mark: comma, as in {evidence['comma']!r}"
    thousands = f"; commas part thousands, as in {evidence['either comma']!r}" if "either comma" in evidence else ""
    return "point", f"decimal mark: point, as in {evidence['point']!r}{thousands}" if sure else None


def _mark_of(body: str) -> str | None:
    """What a number's marks say about the file's decimal mark: point, comma, either comma, or nothing."""
    commas, points = body.count(","), body.count(".")
    if commas and points:
        last = "comma" if body.rindex(",") > body.rindex(".") else "point"
        return last if _digits(body, "comma" if last == "comma" else "point") is not None else None
    if commas > 1 or points > 1:
        mark: Decimal = "point" if commas else "comma"
        return mark if _digits(body, mark) is not None else None
    if not commas and not points:
        return None
    before, after = re.split("[.,]", body)
    whole = re.fullmatch(r"[1-9]\d{0,2}", before) and len(after) == 3
    if commas:
        return "either comma" if whole else "comma"
    return None if whole else "point"
