"""Token budgets: which values of tokens per parameter count as one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 0.1
"""Budgets that lie within this share of each other count as one."""
_SAME_SIZE = 0.03
"""Budgets of one size that lie further apart were meant to differ; rounding to whole steps explains less."""

Array = NDArray[np.float64]


def cluster_budgets(tokens_per_parameter: Array, num_params: Array, tolerance: float = TOLERANCE) -> Array:
    """The budget of each run: one value for all that lie within `tolerance` of each other.

    Values are cut at their largest gap until each group is narrow enough, and until no size has two budgets in a group.
    """
    values, index = np.unique(np.round(tokens_per_parameter, 12), return_inverse=True)
    logs = np.log(values)
    sizes, size_of = np.unique(num_params, return_inverse=True)
    # Smallest and largest value of each size inside a group, by pairs of (size, value) in the order of values.
    pairs = np.stack(np.divmod(np.unique(index * len(sizes) + size_of), len(sizes)))
    label = np.empty(len(values))
    groups = [(0, len(values))]
    while groups:
        start, stop = groups.pop()
        inside = pairs[:, np.searchsorted(pairs[0], start) : np.searchsorted(pairs[0], stop)]
        if stop - start > 1 and (
            logs[stop - 1] - logs[start] > np.log1p(tolerance) or _widest_size(logs, inside, len(sizes)) > _SAME_SIZE
        ):
            cut = start + 1 + int(np.diff(logs[start:stop]).argmax())
            groups += [(start, cut), (cut, stop)]
        else:
            label[start:stop] = _name(values[start:stop])
    return np.asarray(label[index])


def _widest_size(logs: Array, pairs: NDArray[np.int_], num_sizes: int) -> float:
    """The largest log ratio of two budgets of one size."""
    low, high = np.full(num_sizes, np.inf), np.full(num_sizes, -np.inf)
    np.minimum.at(low, pairs[1], logs[pairs[0]])
    np.maximum.at(high, pairs[1], logs[pairs[0]])
    return float((high - low).max())


def _name(values: Array) -> float:
    """The roundest number inside the group: 20 for 19.3 to 20.4."""
    low, high, middle = values[0], values[-1], float(np.median(values))
    if high / low < 1 + 1e-6:
        return float(f"{middle:.6g}") if abs(float(f"{middle:.6g}") / middle - 1) < 1e-9 else middle
    for digits in (1, 2, 3):
        round_value = float(f"{middle:.{digits}g}")
        if low <= round_value <= high:
            return round_value
    return middle


def nearest_budget(budgets: Array, wanted: float, tolerance: float = TOLERANCE) -> float | None:
    """The budget that `wanted` means; None where none lies within the tolerance."""
    nearest = float(budgets[np.abs(np.log(budgets / wanted)).argmin()])
    return nearest if abs(np.log(nearest / wanted)) <= np.log1p(tolerance) else None
