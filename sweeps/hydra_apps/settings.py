"""What the launcher's config means to the engine: a cluster and its allocations, and what a job asks for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from muloco_runner.config import ConfigError
from sweeps.engine.cluster_config import KINDS, AllocationConfig, ClusterConfig, read_cluster
from sweeps.engine.work import Need

_NAME = "hydra.launcher"
_ALLOCATION_KEYS = tuple(
    f.name for f in dataclasses.fields(AllocationConfig) if f.name not in ("name", "gpu_gigabytes")
)
_TICK_SECONDS = {"local": 0.1, "slurm": 30.0}
_SHARE_EXPECTED = 0.5
"""Nobody says how long a job takes: half of the time it asks for is the guess."""


def need_of(resources: Mapping[str, Any]) -> Need:
    """Of one job, from its `hydra.launcher.resources`. Mistakes raise `ConfigError`."""
    for name, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_node", 1), ("tasks_per_node", 1)):
        if resources[name] < least:
            raise ConfigError(f"{_NAME}.resources.{name}={resources[name]}: must be at least {least}")
    if not resources["wall_minutes"] > 0:
        raise ConfigError(f"{_NAME}.resources.wall_minutes={resources['wall_minutes']}: must be above zero")
    return Need(**resources, expected_minutes=_SHARE_EXPECTED * resources["wall_minutes"])


def cluster_of(launcher: Mapping[str, Any], needs: Sequence[Need]) -> ClusterConfig:
    """The checked cluster for jobs of these needs. Mistakes raise `ConfigError`."""
    kind = launcher["cluster"]
    if kind not in KINDS:
        raise ConfigError(f"{_NAME}.cluster={kind!r}: must be one of {', '.join(KINDS)}")
    wide = max(need.nodes for need in needs)
    if kind == "local" and wide > 1:
        raise ConfigError(f"{_NAME}.resources.nodes={wide}: this machine is one node: set {_NAME}.cluster=slurm")
    above = {key: launcher[key] for key in _ALLOCATION_KEYS if key in launcher}
    named = launcher["allocations"] or {kind: {}}
    allocations = []
    for name, own in named.items():
        if not isinstance(own, Mapping):
            raise ConfigError(f"{_NAME}.allocations.{name}={own!r}: give keys with their values")
        for key in own:
            if key not in _ALLOCATION_KEYS:
                known = ", ".join(_ALLOCATION_KEYS)
                raise ConfigError(f"{_NAME}.allocations.{name}.{key}: no such setting; known here: {known}")
        quota = {**above["quota"], **own.get("quota", {})}
        allocations.append(_filled_in({**above, **own, "name": name, "quota": quota}, kind, needs))
    values: dict[str, Any] = {"kind": kind, "allocations": allocations, "setup": launcher["setup"]}
    values["tick_seconds"] = launcher["tick_seconds"] or _TICK_SECONDS[kind]
    values["device"] = "auto" if any(need.gpus_per_node for need in needs) else "cpu"
    cluster = read_cluster(_NAME, values)
    if cluster.kind == "local":
        from sweeps.clusters.local import fill_in

        return fill_in(cluster)
    return cluster


def _filled_in(allocation: dict[str, Any], kind: str, needs: Sequence[Need]) -> dict[str, Any]:
    """With what its nodes have, where that is not said."""
    cpus = max(need.cpus_per_node for need in needs)
    if kind == "local":
        cores = os.cpu_count() or 1
        gpus = any(need.gpus_per_node for need in needs)
        if allocation["quota"]["jobs"] is None and not gpus:
            # No more slots than there are jobs, each with the cores it asks for.
            allocation["quota"]["jobs"] = max(1, min(cores // min(cpus, cores), len(needs)))
        return {"cpus_per_node": cores, **allocation, "gpus_per_node": 0}
    gpus_asked = max(need.gpus_per_node for need in needs)
    return {"gpus_per_node": gpus_asked, "cpus_per_node": cpus, **allocation}
