"""Which pairs of series are compared: every pair of a few, of many each with the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

_ALL_PAIRS_UP_TO = 8


def compared_pairs(names: Sequence[str], baseline: str) -> tuple[list[tuple[str, str]], bool]:
    """Pairs of `names` in their order, and whether they are all; `baseline` is the second of its pairs where not."""
    if len(names) <= _ALL_PAIRS_UP_TO:
        return [*combinations(names, 2)], True
    return [(name, baseline) for name in names if name != baseline and baseline in names], False
