"""How long runs take, learnt from those that have finished: the first guess times what it was wrong by.

A correction is the median over the nearest kin that has finished; `launch` corrects what it starts from, a controller
goes on to learn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from sweeps.engine.work import Work

_KINDS: tuple[tuple[str, ...], ...] = (
    ("num_params", "algorithm", "num_workers", "global_batch_tokens"),
    ("num_params", "algorithm"),
    ("num_params",),
    (),
)
"""Labels that make runs comparable, the nearest kin first."""
Kin = tuple[Any, ...]


class Estimates:
    """Measured over expected minutes, by kin."""

    def __init__(self) -> None:
        self._ratios: dict[Kin, list[float]] = {}
        self._medians: dict[Kin, tuple[int, float]] = {}
        """With the number of ratios that each was taken of."""

    def learn(self, work: Work, measured: float | None) -> None:
        """Takes in the measured minutes of a finished run; one without them, or without an expectation, teaches
        nothing."""
        if measured is None or work.need.expected_minutes <= 0:
            return
        for kin in _kin(work):
            self._ratios.setdefault(kin, []).append(measured / work.need.expected_minutes)

    def minutes_of(self, work: Work) -> float:
        """Expected of the whole run by what is known now."""
        nearest = next((kin for kin in _kin(work) if kin in self._ratios), None)
        return work.need.expected_minutes * (1.0 if nearest is None else self._median(nearest))

    def _median(self, kin: Kin) -> float:
        ratios = self._ratios[kin]
        count, median = self._medians.get(kin, (0, 1.0))
        if count != len(ratios):
            median = statistics.median(ratios)
            self._medians[kin] = len(ratios), median
        return median


def refine(works: Sequence[Work], measured_minutes: Callable[[Work], float | None]) -> list[Work]:
    """The same works, their expected minutes corrected by the finished ones among them."""
    estimates = Estimates()
    for work in works:
        estimates.learn(work, measured_minutes(work))
    return [work.expecting(estimates.minutes_of(work)) for work in works]


def _kin(work: Work) -> list[Kin]:
    return [(labels, *(work.labels.get(label) for label in labels)) for labels in _KINDS]
