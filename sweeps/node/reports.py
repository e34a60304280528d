"""What attempts report of their progress, read by the module that the work's adapter names."""

from __future__ import annotations

import importlib
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.outcome import Progress
from sweeps.engine.work import Work


class Reports(Protocol):
    """The module `Adapter.reports`. What is not readable counts as not there."""

    def read_progress(self, folder: Path) -> Progress | None:
        """How far the work of that folder has come; None where no attempt has reported."""

    def measured_minutes(self, folder: Path) -> float | None:
        """What the finished work took, all attempts together; None where there is no result."""

    def likeness(self, work: Work) -> Hashable | None:
        """Equal for works that go equally fast on equal nodes; None where that is not known."""

    def final_loss(self, folder: Path) -> float | None:
        """The loss of the finished work, infinite where it diverged; None where there is no result, or no loss."""

    def losses_at(self, folder: Path, shares: Sequence[str]) -> dict[str, float]:
        """Training losses at those of the shares of its budget, such as "0.25", that the work has come to; 1 is its
        end. Asked of works of sweeps that stop runs early."""


class Branches(Protocol):
    """The module `Adapter.reports` of work that goes on from a trunk's checkpoint."""

    def begin_branch(self, work: Work) -> bool:
        """Whether its folder has that checkpoint, which is put there where the trunk has left it. Raises `ConfigError`
        where that cannot be."""


class Derives(Protocol):
    """The module `Study.derives`."""

    def derived_work(self, like: Work, values: Mapping[str, Any], cluster: ClusterConfig) -> Work:
        """The same work with other values of some keys, its folder written. Raises `ConfigError` where that cannot
        be."""


def final_loss(work: Work) -> float | None:
    reports = _reports_of(work)
    return reports.final_loss(Path(work.folder)) if reports is not None else None


def losses_at(work: Work, shares: Sequence[str]) -> dict[str, float]:
    reports = _reports_of(work)
    return reports.losses_at(Path(work.folder), shares) if reports is not None else {}


def begin_branch(work: Work) -> bool:
    return cast(Branches, importlib.import_module(work.adapter.reports)).begin_branch(work)


def derived_work(module: str, like: Work, values: Mapping[str, Any], cluster: ClusterConfig) -> Work:
    return cast(Derives, importlib.import_module(module)).derived_work(like, values, cluster)


def read_progress(work: Work) -> Progress | None:
    reports = _reports_of(work)
    return reports.read_progress(Path(work.folder)) if reports is not None else None


def measured_minutes(work: Work) -> float | None:
    """Of a branch without what its trunk has done for it."""
    reports = _reports_of(work)
    minutes = reports.measured_minutes(Path(work.folder)) if reports is not None else None
    return minutes if minutes is None or work.trunk is None else minutes * (1 - work.trunk.spared)


def likeness(work: Work) -> Hashable | None:
    reports = _reports_of(work)
    return reports.likeness(work) if reports is not None else json.dumps(dict(work.labels), sort_keys=True, default=str)


def _reports_of(work: Work) -> Reports | None:
    name = work.adapter.reports
    return cast(Reports, importlib.import_module(name)) if name else None
