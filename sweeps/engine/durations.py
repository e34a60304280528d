"""How long runs take, learnt from those that have finished: the first guess times what it was wrong by.

A correction is the median over the most similar runs that have finished; `launch` corrects what it starts from, and a
controller keeps learning.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from sweeps.engine.work import Work

SimilarityKey = tuple[Any, ...]
"""Labels of a work's `Adapter.similarity_keys`, and their values."""


class Estimates:
    """Measured over expected minutes, by similarity key."""

    def __init__(self) -> None:
        self._ratios: dict[SimilarityKey, list[float]] = {}
        self._medians: dict[SimilarityKey, tuple[int, float]] = {}
        """Each with the number of ratios it was computed from."""

    def learn(self, work: Work, measured: float | None) -> None:
        """Takes in the measured minutes of a finished run; one without them, or without an expectation, teaches
        nothing."""
        if measured is None or work.need.expected_minutes <= 0:
            return
        for key in _keys(work):
            self._ratios.setdefault(key, []).append(measured / work.need.expected_minutes)

    def minutes_of(self, work: Work) -> float:
        """Expected of the whole run by what is known now."""
        nearest = next((key for key in _keys(work) if key in self._ratios), None)
        return work.need.expected_minutes * (1.0 if nearest is None else self._median(nearest))

    def _median(self, key: SimilarityKey) -> float:
        ratios = self._ratios[key]
        count, median = self._medians.get(key, (0, 1.0))
        if count != len(ratios):
            median = statistics.median(ratios)
            self._medians[key] = len(ratios), median
        return median


def refine(works: Sequence[Work], measured_minutes: Callable[[Work], float | None]) -> list[Work]:
    """The same works, their expected minutes corrected by the finished ones among them."""
    estimates = Estimates()
    for work in works:
        estimates.learn(work, measured_minutes(work))
    return [work.expecting(estimates.minutes_of(work)) for work in works]


def _keys(work: Work) -> list[SimilarityKey]:
    return [(labels, *(work.labels.get(label) for label in labels)) for labels in work.adapter.similarity_keys]
