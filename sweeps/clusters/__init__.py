"""Places where jobs run, behind one interface."""

from __future__ import annotations

from pathlib import Path

from sweeps.engine.cluster import Cluster
from sweeps.engine.cluster_config import ClusterConfig


def make_cluster(config: ClusterConfig, folder: Path) -> Cluster:
    """The cluster that `config.kind` names, with its own files in `folder`."""
    if config.kind == "local":
        from sweeps.clusters.local import LocalCluster, gpus_of_this_machine

        (allocation,) = config.allocations
        gpus = gpus_of_this_machine() if allocation.gpus_per_node else ()
        jobs = allocation.quota.jobs
        assert jobs is not None
        return LocalCluster(folder, jobs, gpus)
    if config.kind == "slurm":
        from sweeps.clusters.slurm.cluster import SlurmCluster

        return SlurmCluster(config, folder)
    raise AssertionError(f"cluster kind {config.kind} has no maker")
