"""A simulated cluster: a simulated world, and what a controller can observe of it.

It is stricter than a real scheduler: a request that must never be made (a tag used twice, a run that is at work or
finished already) raises `AssertionError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence

from sweeps.engine.cluster import (
    JobEnd,
    JobIdentity,
    JobObservation,
    JobRequest,
    JobState,
    Limit,
    Limits,
    Observation,
    RefusalKind,
    Refused,
    Resource,
)
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig
from sweeps.engine.outcome import Outcome
from sweeps.engine.work import Attempt
from sweeps.simulation.faults import FaultModel
from sweeps.simulation.world import Job, Node, World


class SimulatedCluster:
    """A cluster whose answers get lost or come late and whose refusals follow the fault model."""

    outlives_controller = True
    queues_successors = True

    def __init__(self, config: ClusterConfig, faults: FaultModel, num_nodes: int, now: float) -> None:
        self.config = config
        self.world = World(config, faults, num_nodes, now)
        self._asked: frozenset[str] = frozenset()
        """Tags of the jobs that the last observation was about."""

    def check(self) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def submission_scopes(self) -> Sequence[str]:
        return ()

    def submit(self, request: JobRequest, after: Sequence[str] = ()) -> str:
        world, faults = self.world, self.world.faults
        assert request.tag not in world.jobs, f"{request.tag} is submitted twice"
        draw = world.random.random()
        if draw < faults.refusals:
            raise Refused(RefusalKind.DEFER, "Slurm temporarily unable to accept job")
        limit = faults.submit_limit
        if limit is not None and sum(job.request.allocation == request.allocation for job in world.live()) >= limit:
            raise Refused(RefusalKind.DEFER, "QOSMaxSubmitJobPerUserLimit")
        is_lost = draw < faults.refusals + faults.lost_answers
        if not is_lost or world.random.random() < 0.5:
            world.accept(request, after)
        if is_lost:
            raise Refused(RefusalKind.MAY_EXIST, "Socket timed out on send/recv operation")
        return world.jobs[request.tag].job_id

    def observe(self, jobs: Sequence[JobIdentity]) -> Observation:
        self._asked = frozenset(job.tag for job in jobs)
        if self.world.random.random() < self.world.faults.outages:
            return Observation({}, complete=False, queue_read=False)
        known = {job.tag: self.world.jobs[job.tag] for job in jobs if job.tag in self.world.jobs}
        numbered = {job.tag for job in jobs if job.job_id is not None}
        listed = {tag: job for tag, job in known.items() if not (tag in numbered and self._is_unlisted(job))}
        return Observation({tag: _observed(job) for tag, job in listed.items() if self._is_seen(job)})

    def absent(self, jobs: Sequence[JobIdentity]) -> Collection[str]:
        living = {job.request.tag for job in self.world.live()}
        return {job.tag for job in jobs if job.tag not in living}

    def _is_seen(self, job: Job) -> bool:
        return self.world.now - job.accepted_at >= self.world.faults.late_seconds

    def _is_unlisted(self, job: Job) -> bool:
        return job.started_at is not None and self.world.has(job.request.tag, "unlisted", self.world.faults.unlisted)

    def has_ended_unlisted(self, tag: str) -> bool:
        """Whether nothing but the passage of time will tell a controller that the job has ended."""
        job = self.world.jobs.get(tag)
        return job is not None and job.ended_at is not None and self._is_unlisted(job)

    def outcome(self, attempt: Attempt) -> Outcome:
        return self.world.outcome(attempt)

    def write_error(self, attempt: Attempt) -> str:
        return ""

    def cancel(self, jobs: Sequence[JobIdentity]) -> None:
        for job in jobs:
            if job.tag in self.world.jobs:
                self.world.cancel(job.tag)

    def cancel_pending(self, jobs: Sequence[JobIdentity]) -> None:
        for job in jobs:
            if job.tag in self.world.jobs:
                self.world.cancel_pending(job.tag)

    def orphaned_jobs(self, prefix: str) -> Sequence[JobIdentity]:
        unknown = [job for job in self.world.live() if job.request.tag not in self._asked and self._is_seen(job)]
        return [JobIdentity(job.request.tag, job.accepted_at, job.job_id) for job in unknown]

    def limits(self, is_own: Callable[[str], bool]) -> Limits:
        return Limits({name: list(self._limits_of(nodes)) for name, nodes in self.world.nodes.items()}, {})

    def _limits_of(self, nodes: Sequence[Node]) -> Iterator[Limit]:
        yield Limit("nodes", Resource.NODES_THERE, len(nodes))
        for name, resource, most in (
            ("GrpTRES.node", Resource.NODES, self.world.faults.node_limit),
            ("MaxSubmitJobs", Resource.SUBMITTED, self.world.faults.submit_limit),
        ):
            if most is not None:
                yield Limit(name, resource, most, enforced=True)


def _observed(job: Job) -> JobObservation:
    state = JobState.PENDING if job.started_at is None else JobState.RUNNING
    return JobObservation(
        tag=job.request.tag,
        job_id=job.job_id,
        state=state if job.ended_at is None else JobState.ENDED,
        nodes=tuple(node.name for node in job.nodes),
        end=job.end,
        exit_code=job.exit_code if job.end is JobEnd.EXITED else None,
        started_at=job.started_at,
        ended_at=job.ended_at,
    )


def num_nodes_of(allocation: AllocationConfig) -> int:
    """As many as the user's own quota lets a sweep use."""
    quota = allocation.quota
    by_gpus = math.ceil(quota.gpus / allocation.gpus_per_node) if quota.gpus and allocation.gpus_per_node else None
    found = [int(number) for number in (quota.nodes, quota.jobs, by_gpus) if number is not None]
    return max(1, min(found, default=1))
