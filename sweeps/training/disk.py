"""Disk space and files that the runs of a sweep take, beside what is free where they go."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from muloco_runner.config import ExecutionConfig, RunConfig
from muloco_runner.memory import checkpoint_bytes
from muloco_runner.record import CHECKPOINTS_KEPT
from sweeps.node.disk_space import file_system_of
from sweeps.training.gpus import sizes_of

Span = tuple[float, float, str]
"""From when to when a run is at work, and its name."""
_LINE_BYTES = 750
"""Of a logged step: its line in the record, and in the attempt's output."""
_FOLDER_BYTES = 6000
"""Of a run's other files: config, status, result and environment."""
_FOLDER_FILES = 9
"""Its folder, those of its attempts and checkpoints; config, record, status, result, lock, and one to spare."""
_FILES_OF_A_JOB = 10
"""An attempt's folder with its output, environment and ending, and what the cluster keeps of the job."""


@dataclass(frozen=True)
class RunSpace:
    """What one run takes, in bytes and files; folders count as files."""

    checkpoint_bytes: int
    at_work: int
    at_work_files: int
    """While it trains: its newest checkpoints and those to be kept, one more that is being written, and records."""
    left: int
    left_files: int
    """Once it is finished."""


@dataclass(frozen=True)
class DiskUse:
    """What the runs of a sweep that are left will take, and what is free."""

    peak_bytes: int
    peak_files: int
    """At most, at any time, if every run takes the time expected of it."""
    left_bytes: int
    left_files: int
    """In the end."""
    largest_checkpoint_bytes: int
    file_system: str
    free_bytes: int
    free_files: int | None
    """None where the file system does not count them."""

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.free_bytes and (self.free_files is None or self.peak_files <= self.free_files)


def checkpoints_at_once(execution: ExecutionConfig) -> int:
    """Return how many checkpoints a run has at most while it trains, the one that is being written included."""
    keep = execution.keeps
    return max(CHECKPOINTS_KEPT, keep.number) + len(keep.steps) + (keep.kind == "best") + 1


def spaces_of(
    runs: Mapping[str, RunConfig],
    execution: ExecutionConfig,
    num_jobs: Mapping[str, int],
    for_branches: Mapping[str, int] | None = None,
) -> dict[str, RunSpace]:
    """What each run takes; `runs` and `num_jobs` are by its id, as is what is returned, and `for_branches`, the number
    of checkpoints that a trunk keeps for its branches.

    Of a sweep that keeps the best of each series each run counts as keeping its last: so it is until the sweep ends.
    """
    keep, most = execution.keeps, checkpoints_at_once(execution)
    sizes: dict[object, int] = {}
    found = {}
    for name, run in runs.items():
        key = sizes_of(run)
        if key not in sizes:
            sizes[key] = checkpoint_bytes(run)
        one, one_files = sizes[key], run.num_workers + 3
        lines = run.num_steps // execution.log_interval_steps + 1
        besides = (for_branches or {}).get(name, 0)
        records = _FOLDER_BYTES + _LINE_BYTES * lines
        files = _FOLDER_FILES + _FILES_OF_A_JOB * num_jobs.get(name, 1)
        found[name] = RunSpace(
            one,
            records + (most + besides) * one,
            files + (most + besides) * one_files,
            records + (keep.most + besides) * one,
            files + (keep.most + besides) * one_files,
        )
    return found


def disk_use(
    root: Path,
    spans: Sequence[Span],
    spaces: Mapping[str, RunSpace],
    code: tuple[int, int] = (0, 0),
    freed_bytes: int = 0,
) -> DiskUse | None:
    """What runs at work in these spans take, and `code`, bytes and files of the copy of the source that they run.

    `freed_bytes`: of weights that the sweep removes when it ends.

    None where none of the runs is known in `spaces`.
    """
    known = [(start, end, spaces[name]) for start, end, name in spans if name in spaces]
    if not known:
        return None
    changes = sorted(
        [(start, space.at_work, space.at_work_files) for start, _, space in known]
        + [(end, space.left - space.at_work, space.left_files - space.at_work_files) for _, end, space in known]
    )
    place = file_system_of(root)
    free = os.statvfs(place)
    return DiskUse(
        peak_bytes=code[0] + max(accumulate(change for _, change, _ in changes)),
        peak_files=code[1] + max(accumulate(change for _, _, change in changes)),
        left_bytes=code[0] + sum(space.left for _, _, space in known) - freed_bytes,
        left_files=code[1] + sum(space.left_files for _, _, space in known),
        largest_checkpoint_bytes=max(space.checkpoint_bytes for _, _, space in known),
        file_system=str(place),
        free_bytes=free.f_bavail * free.f_frsize,
        free_files=free.f_favail if free.f_files else None,
    )
