"""The port between the controller and a cluster of any kind: `submit`, `observe`, `cancel`, `limits`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from sweeps.engine.outcome import Outcome
from sweeps.engine.work import Attempt


@dataclass(frozen=True)
class JobRequest:
    """One job: one attempt, or several small ones packed onto whole nodes, each with its own GPUs and ending."""

    tag: str
    """Names sweep and number, and is never used twice. A cluster must be able to find a job by it."""
    allocation: str
    attempts: tuple[Attempt, ...]
    nodes: int
    gpus_per_node: int
    cpus_per_node: int
    wall_minutes: float
    excluded_nodes: tuple[str, ...] = ()
    memory_gigabytes: float | None = None
    """Main memory of each node, in GiB; None takes the cluster's default, or what the allocation's options say."""
    memory_can_grow: bool = False
    """Whether another attempt may be given more."""
    code: str = ""
    """The folder that its processes import from (`sweeps.node.code_snapshot`); where empty, the environment's own."""
    after: tuple[str, ...] = ()
    """Tags of the jobs that must all have ended before it starts, the last of which it takes the nodes of."""

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "attempts": [attempt.to_dict() for attempt in self.attempts]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> JobRequest:
        attempts = tuple(Attempt.from_dict(attempt) for attempt in values["attempts"])
        excluded, after = tuple(values["excluded_nodes"]), tuple(values.get("after", ()))
        return cls(**{**values, "attempts": attempts, "excluded_nodes": excluded, "after": after})


class JobState(Enum):
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"


class JobEnd(Enum):
    """How a job ended as the scheduler reports it; an attempt's own `Ending`, where there is one, takes precedence."""

    EXITED = "exited"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    NODE_FAILURE = "node_failure"
    OUT_OF_MEMORY = "out_of_memory"
    CANCELLED = "cancelled"
    LAUNCH_FAILURE = "launch_failure"
    LOST = "lost"
    """Nobody knows of the job any more."""


@dataclass(frozen=True)
class JobIdentity:
    """How a cluster tells one job from all others."""

    tag: str
    intended_at: float = 0.0
    """Unix seconds by the file system's clock, just before it was submitted."""
    job_id: str | None = None
    """None until the cluster's answer is recorded: until then the job is known by its tag alone."""
    uid: int | None = None
    """The user whose job it is; None until a look at the cluster has shown it, or where the cluster has no users."""
    submitted_at: float | None = None
    """Unix seconds by the scheduler's clock, since a number may be given again; None until a look has shown it."""


@dataclass(frozen=True)
class JobObservation:
    tag: str
    job_id: str
    state: JobState
    nodes: tuple[str, ...] = ()
    reason: str = ""
    """Why it waits, as the scheduler reports it."""
    never_starts: bool = False
    """Whether that reason means that it will wait for ever."""
    end: JobEnd | None = None
    exit_code: int | None = None
    started_at: float | None = None
    """Unix seconds, by the scheduler's clock."""
    ended_at: float | None = None
    """Unix seconds, by the same clock."""
    uid: int | None = None
    submitted_at: float | None = None
    """As in `JobIdentity`; None where the cluster has no such thing."""
    is_suspended: bool = False
    """Whether the scheduler has stopped its processes for a while, so that none writes a heartbeat."""


@dataclass(frozen=True)
class Observation:
    """What one look at the cluster has shown.

    `complete` is False when the scheduler did not answer: then a tag that is missing means nothing. Where it is True, a
    job that is missing may have ended or not have arrived: `Cluster.absent` asks for it.
    """

    jobs: Mapping[str, JobObservation]
    """Jobs by tag."""
    complete: bool = True
    queue_read: bool = True
    """False where not even the queue was to be had: what the user's other jobs hold is not known then, so that nothing
    may be submitted beside them."""


class RefusalKind(Enum):
    """What a refused submission means for the job it was to start."""

    DEFER = "defer"
    """A limit on submitted jobs, or a scheduler too busy: the same request may be accepted later."""
    MAY_EXIST = "may_exist"
    """The answer was lost: the job may have been accepted. Look for its tag before submitting again."""
    FATAL = "fatal"
    """The request itself is wrong."""


class Refused(Exception):
    """A submission that was not, or not knowingly, accepted."""

    def __init__(self, kind: RefusalKind, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


class Resource(Enum):
    """What a limit counts."""

    NODES = "nodes"
    GPUS = "gpus"
    CPUS = "cpus"
    JOBS = "jobs"
    """Running at once."""
    SUBMITTED = "submitted jobs"
    GPU_HOURS = "GPU-hours"
    WALL_MINUTES = "minutes of one job"
    CPUS_PER_NODE = "CPUs of one node"
    GPUS_PER_NODE = "GPUs of one node"
    MEMORY_PER_NODE = "GiB of one node"
    NODES_PER_JOB = "nodes of one job"
    GPUS_PER_JOB = "GPUs of one job"
    NODES_THERE = "nodes there are"


@dataclass(frozen=True)
class Limit:
    """One limit on an allocation, and how much of it others than this sweep use."""

    name: str
    """As whoever set it knows it, such as "quota.nodes"."""
    resource: Resource
    most: float
    used_by_others: float = 0.0
    enforced: bool = False
    """Whether the cluster itself keeps it: a job too many waits there and does no harm."""
    place: str = ""
    """Where a job runs in one of several places, such as partitions, the one that this limit is of; empty for a limit
    that holds in all of them."""


@dataclass(frozen=True)
class Limits:
    """Limits by allocation."""

    of: Mapping[str, Sequence[Limit]] = field(default_factory=dict)
    others: Mapping[str, Mapping[Resource, float]] = field(default_factory=dict)
    """What the user's jobs outside this sweep hold, pending ones included: it counts against the user's own quota."""
    note: str = ""
    """Why the cluster's limits are not known, for people; empty where they are."""


class Cluster(Protocol):
    """One cluster. Every method may be called again after a crash at any instruction."""

    outlives_controller: bool
    """Whether its jobs keep running when a person stops the controller."""
    queues_successors: bool
    """Whether it can keep a job until others have ended."""

    def check(self) -> None:
        """Raises `ConfigError` where the cluster's file names what the cluster has not, or keeps from the user."""

    def start(self) -> None:
        """Whatever must run before work can: nothing on a scheduler."""

    def submit(self, request: JobRequest, after: Sequence[str] = ()) -> str:
        """The job's id. `after` are those of the jobs that must have ended, in any way, before it starts; ids that the
        cluster has forgotten count as ended. Raises `Refused`."""

    def observe(self, jobs: Sequence[JobIdentity]) -> Observation:
        """All of these jobs that the cluster knows of, ended ones included."""

    def absent(self, jobs: Sequence[JobIdentity]) -> Collection[str]:
        """Tags of those of the jobs that the cluster, asked for exactly them, does not know: they neither wait nor run.

        `jobs` are missing from a complete observation. One that the cluster does not answer about is not among them.
        """

    def orphaned_jobs(self, prefix: str) -> Sequence[JobIdentity]:
        """Unfinished jobs whose tags begin so and that the last `observe` was not asked for, as of that look."""

    def outcome(self, attempt: Attempt) -> Outcome:
        """What the attempt itself has left."""

    def write_error(self, attempt: Attempt) -> str:
        """The error that keeps the attempt from writing into its folder; empty where it can."""

    def cancel(self, jobs: Sequence[JobIdentity]) -> None:
        """Cancels the jobs that have not ended; unknown ones are ignored. May be lost: the caller repeats it."""

    def cancel_pending(self, jobs: Sequence[JobIdentity]) -> None:
        """Cancels those of the jobs that are still pending; running ones continue. May be lost."""

    def limits(self, is_own: Callable[[str], bool]) -> Limits:
        """Limits that the cluster itself sets, as they are now; empty where it sets none. `is_own` says by its tag
        whether a job is one of the sweep's, which the sweep counts itself: it is not counted a second time here."""

    def submission_scopes(self) -> Sequence[str]:
        """Names of what the allocations draw on, alike for all sweeps of one user that draw on it too; none where a
        sweep's jobs can take nothing from another's. Who submits into one holds its lease meanwhile."""

    def stop(self) -> None:
        """Nothing is left to do."""
