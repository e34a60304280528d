"""What the other rooms need to know of a kind of cluster; `sweeps.clusters.BACKENDS` lists the kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    num_nodes: int | None = None
    """Number of nodes, where every cluster of the kind has the same."""
    fill_allocation: Callable[[dict[str, Any], Sequence[Need]], dict[str, Any]] = nodes_as_needed
    """Completes an allocation of a Hydra application's launcher with what its nodes have, for jobs of these needs."""
