"""Translates the launcher's config for the engine: a cluster with its allocations, and what a job asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from muloco_runner.config import ConfigError
from sweeps.clusters import BACKENDS, backend_of, read_cluster
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, checked_minutes
from sweeps.engine.work import Need
from sweeps.formatting import plural

_NAME = "hydra.launcher"
_ALLOCATION_KEYS = tuple(
    f.name for f in dataclasses.fields(AllocationConfig) if f.name not in ("name", "gpu_gigabytes", "options")
)
_SHARE_EXPECTED = 0.5
"""A job is expected to take this share of the time it asks for, since nothing else is known."""


def need_of(resources: Mapping[str, Any]) -> Need:
    """Return what one job asks for, from its `hydra.launcher.resources`. Mistakes raise `ConfigError`."""
    for name, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_node", 1), ("tasks_per_node", 1)):
        if resources[name] < least:
            raise ConfigError(f"{_NAME}.resources.{name}={resources[name]}: must be at least {least}")
    minutes = checked_minutes(f"{_NAME}.resources.wall_minutes", resources["wall_minutes"])
    if not minutes > 0:
        raise ConfigError(f"{_NAME}.resources.wall_minutes={resources['wall_minutes']}: must be above zero")
    return Need(**{**resources, "wall_minutes": minutes}, expected_minutes=_SHARE_EXPECTED * minutes)


def cluster_of(launcher: Mapping[str, Any], needs: Sequence[Need]) -> ClusterConfig:
    """Return the checked cluster for jobs of these needs. Mistakes raise `ConfigError`."""
    kind = launcher["cluster"]
    backend = backend_of(kind, f"{_NAME}.cluster")
    wide = max(need.nodes for need in needs)
    if backend.num_nodes is not None and wide > backend.num_nodes:
        others = " or ".join(other for other in BACKENDS if other != kind)
        raise ConfigError(
            f"{_NAME}.resources.nodes={wide}: {backend.title} is {plural(backend.num_nodes, 'node')}: "
            f"set {_NAME}.cluster={others}"
        )
    known = (*_ALLOCATION_KEYS, *backend.option_keys)
    # The lines of `setup` are the cluster's, whose own come first.
    shared = {key: launcher[key] for key in known if launcher.get(key) is not None and key != "setup"}
    allocations = []
    for name, own in (launcher["allocations"] or {kind: {}}).items():
        if not isinstance(own, Mapping):
            raise ConfigError(f"{_NAME}.allocations.{name}={own!r}: give keys with their values")
        backend.refuse(f"{_NAME}.allocations.{name}", own)
        for key in own:
            if key not in known:
                raise ConfigError(f"{_NAME}.allocations.{name}.{key}: no such setting; known here: {', '.join(known)}")
        quota = {**shared["quota"], **own.get("quota", {})}
        allocations.append(backend.fill_allocation({**shared, **own, "name": name, "quota": quota}, needs))
    values: dict[str, Any] = {"kind": kind, "allocations": allocations, "setup": launcher["setup"]}
    values["on_alike_failures"] = launcher["on_alike_failures"]
    values["tick_seconds"] = launcher["tick_seconds"] or backend.tick_seconds
    values["device"] = "auto" if any(need.gpus_per_node for need in needs) else "cpu"
    return read_cluster(_NAME, values)
