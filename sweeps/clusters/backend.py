"""What the other rooms need to know of a kind of cluster; `sweeps.clusters.BACKENDS` lists the kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError
from sweeps.engine.cluster import Cluster
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.work import Need


def nodes_as_needed(allocation: dict[str, Any], needs: Sequence[Need]) -> dict[str, Any]:
    """Return the allocation, its nodes sized for the largest of the jobs where their size is not given."""
    gpus = max(need.gpus_per_node for need in needs)
    return {"gpus_per_node": gpus, "cpus_per_node": max(need.cpus_per_node for need in needs), **allocation}


@dataclass(frozen=True)
class Backend:
    """One kind of cluster."""

    title: str
    """Name in messages."""
    make: Callable[[ClusterConfig, Path], Cluster]
    """The cluster, with its own files in the folder."""
    complete: Callable[[ClusterConfig], ClusterConfig]
    """Checks what only this kind understands and fills in what the file leaves open. Mistakes raise `ConfigError`."""
    tick_seconds: float
    """Default of a Hydra application's launcher."""
    option_keys: tuple[str, ...] = ()
    """Settings of an allocation that only this kind understands (`AllocationConfig.options`)."""
    refused_keys: Mapping[str, str] = field(default_factory=dict)
    """Settings that people know of it and that the engine decides: what to use instead."""
    num_nodes: int | None = None
    """Number of nodes, where every cluster of the kind has the same."""
    fill_allocation: Callable[[dict[str, Any], Sequence[Need]], dict[str, Any]] = nodes_as_needed
    """Completes an allocation of a Hydra application's launcher with what its nodes have, for jobs of these needs."""

    def refuse(self, at: str, keys: Iterable[Any]) -> None:
        """Raise `ConfigError` for the first of the settings that the engine decides."""
        for key in keys:
            if key in self.refused_keys:
                raise ConfigError(f"{at}.{key}: {self.refused_keys[key]}")
