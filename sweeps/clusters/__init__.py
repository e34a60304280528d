"""Clusters that jobs run on, behind one interface (`sweeps.engine.cluster.Cluster`).

A new kind of cluster is a module or folder here with a `BACKEND` (`sweeps.clusters.backend.Backend`), and one line in
`BACKENDS`.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError
from sweeps.clusters.backend import Backend
from sweeps.engine.cluster import Cluster
from sweeps.engine.cluster_config import RENAMED, ClusterConfig, parse_cluster

BACKENDS = {
    "local": "sweeps.clusters.local",
    "slurm": "sweeps.clusters.slurm.slurm_cluster",
}
"""`kind` in a cluster's file or `hydra.launcher.cluster`: the module with the `BACKEND`, loaded at its first use."""


def backend_of(kind: object, where: str) -> Backend:
    """Return the backend of a kind of cluster; an unknown kind raises `ConfigError`. `where` names the setting."""
    if not isinstance(kind, str) or kind not in BACKENDS:
        raise ConfigError(f"{where}={kind!r}: must be one of {', '.join(BACKENDS)}")
    backend: Backend = importlib.import_module(BACKENDS[kind]).BACKEND
    return backend


def read_cluster(name: str, values: Any) -> ClusterConfig:
    """Return the checked cluster of conf/cluster/`name`.yaml, completed by its kind. Mistakes raise `ConfigError`."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"cluster={name}: holds no keys; name a file under conf/cluster/")
    for before, now in RENAMED.items():
        if before in values:
            print(f"cluster={name}: {before} is called {now} now; the old name still works", file=sys.stderr)
    current: dict[str, Any] = {RENAMED.get(str(key), str(key)): value for key, value in values.items()}
    backend = backend_of(current.get("kind"), f"cluster={name}: kind")
    return backend.complete(parse_cluster(name, _with_shared_options(name, current, backend), backend.option_keys))


def _with_shared_options(name: str, values: Mapping[str, Any], backend: Backend) -> dict[str, Any]:
    """Return the values with settings of the kind, where they stand for the whole cluster, in each allocation that has
    none of its own."""
    backend.refuse(f"cluster={name}", values)
    own = {f.name for f in dataclasses.fields(ClusterConfig)}
    shared = {key: value for key, value in values.items() if key in backend.option_keys and key not in own}
    others = {key: value for key, value in values.items() if key not in shared}
    allocations = values.get("allocations")
    if not isinstance(allocations, Sequence) or not all(isinstance(entry, Mapping) for entry in allocations):
        return others
    for number, entry in enumerate(allocations):
        backend.refuse(f"cluster={name}: allocations[{number}]", entry)
    return {**others, "allocations": [{**shared, **entry} for entry in allocations]}


def make_cluster(config: ClusterConfig, folder: Path) -> Cluster:
    """Return the cluster that `config.kind` names, with its own files in `folder`."""
    return backend_of(config.kind, f"cluster={config.name}: kind").make(config, folder)
