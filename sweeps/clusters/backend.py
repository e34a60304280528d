"""What a kind of cluster tells the rest of the product of itself; `sweeps.clusters.BACKENDS` lists the kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.engine.cluster import Cluster
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.work import Need


def nodes_as_needed(allocation: dict[str, Any], needs: Sequence[Need]) -> dict[str, Any]:
    """The allocation with nodes that have what the largest of the jobs asks for, where nobody says what they have."""
    gpus = max(need.gpus_per_node for need in needs)
    return {"gpus_per_node": gpus, "cpus_per_node": max(need.cpus_per_node for need in needs), **allocation}


@dataclass(frozen=True)
class Backend:
    """One kind of cluster."""

    title: str
    """Its name in messages."""
    make: Callable[[ClusterConfig, Path], Cluster]
    """The cluster, with its own files in the folder."""
    complete: Callable[[ClusterConfig], ClusterConfig]
    """Checks what only this kind understands and fills in what the file leaves open. Mistakes raise `ConfigError`."""
    tick_seconds: float
    """Between two looks at the cluster, for a Hydra application that does not say."""
    option_keys: tuple[str, ...] = ()
    """Settings of an allocation that only this kind understands (`AllocationConfig.options`)."""
    num_nodes: int | None = None
    """Nodes that there are, where that is known of every cluster of the kind."""
    fill_allocation: Callable[[dict[str, Any], Sequence[Need]], dict[str, Any]] = nodes_as_needed
    """An allocation of a Hydra application's launcher with what its nodes have, for jobs of these needs."""
