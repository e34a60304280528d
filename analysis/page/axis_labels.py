"""What stands at an axis: the quantity, its unit, and where a table holds it under another name or in another unit."""

from __future__ import annotations

from typing import Any

_WIDEST = 26
"""Characters of a column's name that fit beside a quantity."""


def unit_of(report: dict[str, Any], column: str, unit: str) -> str:
    """`unit`, unless the table's column turned out to be in another one."""
    return "unit not clear" if column in report["audit"]["unusable"] else unit


def across(report: dict[str, Any], quantity: str, column: str, unit: str = "") -> str:
    """The label of an axis that lies: `batch B (tokens; column batch_size x 2,048)`."""
    inside = "; ".join(text for text in (unit_of(report, column, unit), _own(report, column)) if text)
    return f"{quantity} ({inside})" if inside else quantity


def upright(report: dict[str, Any], quantity: str, column: str, unit: str = "") -> str:
    """The label of an axis that stands, which is shorter: the table's column has a line of its own."""
    unit, own = unit_of(report, column, unit), _own(report, column)
    return (f"{quantity} ({unit})" if unit else quantity) + (f"\n({own})" if own else "")


def compute(report: dict[str, Any]) -> str:
    """The label of compute, which is 6ND unless a table counts flops in a column of its own."""
    counted = "flops" in report["audit"]["columns"]
    return across(report, "compute C" if counted else "compute C = 6ND", "flops", "flops")


def _own(report: dict[str, Any], column: str) -> str:
    """`column NAME x FACTOR` where the table's column has another name than ours, or another unit."""
    own = report["audit"]["columns"].get(column, column)
    if own == column and column not in report["audit"]["unusable"]:
        return ""
    return f"column {own}" if len(own) <= _WIDEST else f"column {own[: _WIDEST - 1]}…"
