"""What jobs in SLURM's queue hold of an allocation.

The user's quota counts pending jobs too, each task of an array by itself: any may start before the next look, and those
that are held once somebody releases them. A job that waits for the end of another takes its place. How jobs count that
share a node is said at `QuotaConfig.nodes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sweeps.clusters.slurm.parse import QueuedJob, known_state
from sweeps.clusters.slurm.slurm_settings import options_of
from sweeps.engine.cluster import Limit, Resource
from sweeps.engine.cluster_config import AllocationConfig
from sweeps.engine.quota import chains


def jobs_in(
    allocation: AllocationConfig, jobs: Sequence[QueuedJob], default_partition: str | None = None
) -> list[QueuedJob]:
    """Return the jobs that count against the allocation: a running job where it runs, a pending one in each partition
    that it may run in. A setting that the allocation leaves open matches every job."""
    options = options_of(allocation)
    partition = options.partition or default_partition

    def counts(job: QueuedJob) -> bool:
        named = ((partition, job.partition), (options.account, job.account), (options.qos, job.qos))
        return all(wanted is None or set(wanted.split(",")) & set(given.split(",")) for wanted, given in named)

    return [job for job in jobs if counts(job)]


def resources_of(jobs: Sequence[QueuedJob]) -> dict[Resource, float]:
    """Return what the jobs hold together, or will once those that are pending have started."""
    in_order = sorted(jobs, key=lambda job: (len(job.job_id), job.job_id))
    found = chains(in_order, lambda job: job.job_id, lambda job: job.after)
    return {
        Resource.NODES: sum(max(job.num_nodes for job in chain) for chain in found),
        Resource.GPUS: sum(max(job.num_gpus for job in chain) for chain in found),
        Resource.CPUS: sum(max(job.num_cpus for job in chain) for chain in found),
        Resource.JOBS: len(found),
        Resource.SUBMITTED: len(jobs),
    }


def without_own(limit: Limit, own: Sequence[QueuedJob]) -> Limit:
    """Return SLURM's limit without what the sweep's own jobs use of it, which the sweep counts itself.

    SLURM counts the jobs that have started, and only for `SUBMITTED` those that are pending.
    """
    started = [job for job in own if known_state(job.state) != "PENDING"]
    counted = own if limit.resource is Resource.SUBMITTED else started
    used = max(0.0, limit.used_by_others - resources_of(counted).get(limit.resource, 0.0))
    return replace(limit, used_by_others=used, enforced=True)
