"""Settings of a cluster's file that only SLURM understands: partition, account, QOS, and the controller's job."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from muloco_runner.config import ConfigError
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, build, check_numbers


@dataclass
class SlurmOptions:
    """Settings of one allocation; None takes SLURM's default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch, by their long names."""


OPTION_KEYS = tuple(f.name for f in dataclasses.fields(SlurmOptions))


def options_of(allocation: AllocationConfig) -> SlurmOptions:
    return SlurmOptions(**allocation.options)


@dataclass
class ControllerConfig:
    """Where `launch --controller slurm` runs the sweep's controller: one core, no GPU. None takes the first
    allocation's, which is for clusters that share their nodes."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    wall_minutes: float = 24 * 60
    """Its successor, queued from the start, continues after it."""
    memory_gigabytes: float = 2.0
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch, by their long names."""


def controller_of(cluster: ClusterConfig) -> ControllerConfig:
    """Return the settings of the controller's job. Mistakes raise `ConfigError`."""
    where = f"cluster={cluster.name}: controller"
    controller: ControllerConfig = build(ControllerConfig, cluster.controller, where)
    check_numbers(where, controller, wall_minutes=1, memory_gigabytes=0.1)
    return controller


def check_settings(cluster: ClusterConfig) -> ClusterConfig:
    """Return the same cluster. Mistakes in what only SLURM understands raise `ConfigError`."""
    for allocation in cluster.allocations:
        sbatch = options_of(allocation).sbatch
        if not isinstance(sbatch, dict):
            raise ConfigError(f"cluster={cluster.name}: {allocation.name}.sbatch={sbatch!r}: give options with values")
    controller_of(cluster)
    return cluster
