"""How long runs take, learnt from those that have finished: the first guess times what it was wrong by."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from muloco_runner.record import RecordError, RunFolder
from sweeps.work import Work

_KINDS: tuple[tuple[str, ...], ...] = (
    ("num_params", "algorithm", "num_workers", "global_batch_tokens"),
    ("num_params", "algorithm"),
    ("num_params",),
    (),
)
"""Labels that make runs comparable, the nearest kin first."""


def measured_minutes(work: Work) -> float | None:
    """Training time of a finished run, all attempts together; None where there is no result."""
    try:
        result = RunFolder(work.folder).read_result()
    except RecordError:
        return None
    return result.train_seconds / 60 if result is not None else None


def refine(works: Sequence[Work]) -> list[Work]:
    """The same works, their expected minutes corrected by the finished ones among them (medians over nearest kin)."""
    ratios: dict[tuple[Any, ...], list[float]] = {}
    for work in works:
        measured = measured_minutes(work)
        if measured is not None and work.need.expected_minutes > 0:
            for kin in _kin(work):
                ratios.setdefault(kin, []).append(measured / work.need.expected_minutes)
    correction = {kin: statistics.median(found) for kin, found in ratios.items()}
    return [_scaled(work, correction) for work in works]


def _kin(work: Work) -> list[tuple[Any, ...]]:
    return [(labels, *(work.labels.get(label) for label in labels)) for labels in _KINDS]


def _scaled(work: Work, correction: Mapping[tuple[Any, ...], float]) -> Work:
    for kin in _kin(work):
        if kin in correction:
            need = dataclasses.replace(work.need, expected_minutes=work.need.expected_minutes * correction[kin])
            return dataclasses.replace(work, need=need)
    return work
