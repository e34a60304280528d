"""SLURM behind the engine's interface: one `squeue` an observation, and one `sacct` where a job has left the queue.

Limits change seldom, so they are read every few ticks, and the user's other jobs with each `squeue`. A command that
does not answer leaves what was known.

A job carries its tag as its name, so that it is found even where the answer of `sbatch` was lost (`.job_rows`). SLURM's
state of an ended job counts only where the attempt left no exit record.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from muloco_runner.config import ConfigError
from sweeps.clusters.backend import Backend
from sweeps.clusters.slurm.accounting import (
    ASSOCIATION_FIELDS,
    NODE_FORMAT,
    QOS_FIELDS,
    Accounting,
    parse_assoc_mgr,
    parse_grants,
    parse_nodes,
    parse_partitions,
    with_unused_limits,
)
from sweeps.clusters.slurm.batch_job import write_job
from sweeps.clusters.slurm.commands import accounting_of, answer_of, listing_of, submit_script
from sweeps.clusters.slurm.job_rows import rows_of
from sweeps.clusters.slurm.limits import limits_of, mistake_in, partition_of
from sweeps.clusters.slurm.parse import (
    SACCT_FIELDS,
    SQUEUE_FORMAT,
    AccountedJob,
    QueuedJob,
    known_state,
    parse_sacct,
    parse_squeue,
)
from sweeps.clusters.slurm.reasons import never_starts
from sweeps.clusters.slurm.script import CONTROLLER_OF, PAYLOADS
from sweeps.clusters.slurm.slurm_settings import (
    OPTION_KEYS,
    REFUSED_PARAMETERS,
    check_settings,
    options_of,
    options_of_job,
)
from sweeps.clusters.slurm.usage import jobs_in, resources_of, without_own
from sweeps.clusters.slurm.variables import overruled_variables
from sweeps.engine.cluster import (
    JobEnd,
    JobIdentity,
    JobObservation,
    JobRequest,
    JobState,
    Limits,
    Observation,
    RefusalKind,
    Refused,
    Resource,
)
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig
from sweeps.engine.outcome import Outcome
from sweeps.engine.work import Attempt
from sweeps.node.attempt_files import read_outcome, write_error_in_folder

_JOBS_PER_COMMAND = 500
"""More numbers or names than this do not fit a command line well: all of the user's jobs are read then."""
_SQUEUE = ("squeue", "--noheader", "--states=all", "--array", f"--Format={SQUEUE_FORMAT}")
_CLOCK_SECONDS = 3600.0
"""Clocks of hosts differ by less."""
_TICKS_PER_LIMITS = 10
"""Ticks between two readings of SLURM's own limits, which SLURM enforces meanwhile."""
_ENDS = {
    "TIMEOUT": JobEnd.TIMEOUT,
    "DEADLINE": JobEnd.TIMEOUT,
    "PREEMPTED": JobEnd.PREEMPTED,
    "NODE_FAIL": JobEnd.NODE_FAILURE,
    "BOOT_FAIL": JobEnd.NODE_FAILURE,
    "OUT_OF_MEMORY": JobEnd.OUT_OF_MEMORY,
    "CANCELLED": JobEnd.CANCELLED,
}


class SlurmCluster:
    """`submit`, `observe`, `cancel` and `limits` by SLURM's commands."""

    outlives_controller = True
    queues_successors = True

    def __init__(self, config: ClusterConfig, folder: Path) -> None:
        self.config, self.folder = config, folder.resolve()
        self._queue: list[QueuedJob] = []
        """The last answer of `squeue`."""
        self._users: frozenset[int] = frozenset({os.getuid()})
        """This process's user, and whoever else has submitted jobs of the sweep."""
        self._own: frozenset[str] = frozenset()
        """Numbers of the jobs that the last `observe` was asked for and found in the queue."""
        self._limits = Limits()
        self._accounting: Accounting | None = None
        """What `_limits` were computed from."""
        self._read_again_at = -float("inf")

    def check(self) -> None:
        if shutil.which("sbatch") is None:
            raise ConfigError(
                f"cluster={self.config.name}: kind=slurm, but there is no sbatch on this machine: "
                "launch on a login node, or choose cluster=local"
            )
        for allocation in self.config.allocations:
            for line in overruled_variables(os.environ, allocation):
                print(f"cluster={self.config.name}: {line}", file=sys.stderr)
        accounting = read_accounting()
        for allocation in self.config.allocations if accounting is not None else ():
            assert accounting is not None
            mistake = mistake_in(allocation, accounting)
            if mistake is not None:
                raise ConfigError(f"cluster={self.config.name}: allocation {allocation.name}: {mistake}")

    def start(self) -> None:
        # A definition of earlier code may hold what is refused today.
        check_settings(self.config)
        for name in ("requests", "scripts", "logs", PAYLOADS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def submit(self, request: JobRequest, after: Sequence[str] = ()) -> str:
        self.start()
        allocation = self.config.allocation(request.allocation)
        if after and options_of_job(request, allocation).dependency is not None:
            raise Refused(RefusalKind.FATAL, "its `dependency` says when it may start")
        return submit_script(write_job(request, allocation, self.config.setup, self.folder, after))

    def observe(self, jobs: Sequence[JobIdentity]) -> Observation:
        self._users |= {job.uid for job in jobs if job.uid is not None}
        if not self._read_queue():
            return Observation({}, complete=False, queue_read=False)
        queued = rows_of(jobs, self._queue)
        self._own = frozenset(row.job_id for row in queued.values())
        found = {tag: _queued(tag, row) for tag, row in queued.items()}
        missing = [job for job in jobs if job.tag not in found]
        accounted = self._accounted(missing) if missing else {}
        # Where accounting does not answer, a job that has left the queue may have ended in any way.
        return Observation({**found, **(accounted or {})}, complete=accounted is not None)

    def _read_queue(self) -> bool:
        """Read all jobs of the sweep's users; return False where the scheduler does not answer."""
        rows = _queue_rows(answer_of(*_SQUEUE, self._of_users()))
        if rows is not None:
            self._queue = rows
        return rows is not None

    def _of_users(self) -> str:
        return f"--user={','.join(map(str, sorted(self._users)))}"

    def _accounted(self, jobs: Sequence[JobIdentity]) -> Mapping[str, JobObservation] | None:
        """Return ended jobs by tag; None where accounting does not answer."""
        # The default window begins at midnight.
        begin = time.localtime(min(job.intended_at for job in jobs) - _CLOCK_SECONDS)
        since = time.strftime("%Y-%m-%dT%H:%M:%S", begin)
        command = ["sacct", "-nPXD", self._of_users(), f"--starttime={since}", f"--format={SACCT_FIELDS}"]
        text = accounting_of(*command, *_which(jobs))
        if text is None:
            return None
        try:
            rows = parse_sacct(text)
        except ValueError:
            return None
        # A job that is in neither was lost with the scheduler's state, or will be in accounting soon.
        ended = {tag: row for tag, row in rows_of(jobs, rows).items() if row.is_finished}
        return {tag: _from_accounting(tag, row) for tag, row in ended.items()}

    def absent(self, jobs: Sequence[JobIdentity]) -> Collection[str]:
        """Ask for exactly the recorded numbers, whoever's they are; a job without one has been looked for by name."""
        numbers = [job.job_id for job in jobs if job.job_id is not None and job.job_id.isdigit()]
        which = [f"--jobs={','.join(numbers)}"] if len(numbers) <= _JOBS_PER_COMMAND else []
        rows = _queue_rows(listing_of(*_SQUEUE, *which)) if numbers else []
        if rows is None:
            return ()
        return {job.tag for job in jobs} - rows_of(jobs, rows).keys()

    def orphaned_jobs(self, prefix: str) -> Sequence[JobIdentity]:
        return [
            JobIdentity(row.name, row.submitted_at or 0.0, row.job_id, row.uid, row.submitted_at)
            for row in self._queue
            if row.name.startswith(prefix) and not row.is_finished and row.job_id not in self._own
        ]

    def outcome(self, attempt: Attempt) -> Outcome:
        return read_outcome(attempt)

    def write_error(self, attempt: Attempt) -> str:
        return write_error_in_folder(attempt)

    def cancel(self, jobs: Sequence[JobIdentity]) -> None:
        """Cancel the jobs: SIGTERM first, so that attempts save a checkpoint within SLURM's KillWait."""
        self._scancel(jobs)

    def cancel_pending(self, jobs: Sequence[JobIdentity]) -> None:
        self._scancel(jobs, "--state=PENDING")

    def _scancel(self, jobs: Sequence[JobIdentity], *options: str) -> None:
        """Run one `scancel` for all jobs that the last `squeue` listed, and one by name for each of the others: their
        numbers may be other jobs' by now."""
        known = rows_of(jobs, self._queue)
        numbers = [row.job_id for row in known.values() if not row.is_finished]
        if numbers:
            answer_of("scancel", *options, *numbers)
        for job in jobs:
            if job.tag not in known:
                answer_of("scancel", *options, f"--user={os.getuid()}", f"--name={job.tag}")

    def limits(self, is_own: Callable[[str], bool]) -> Limits:
        """Return SLURM's limits as last read, with what the user's other jobs hold as of the last `squeue`."""
        if time.monotonic() >= self._read_again_at:
            self._read_limits(is_own)
            self._read_again_at = time.monotonic() + _TICKS_PER_LIMITS * self.config.tick_seconds
        return replace(self._limits, others=self._others(is_own))

    def _read_limits(self, is_own: Callable[[str], bool]) -> None:
        """Read the limits; leave them as they were where SLURM, or its database, does not answer."""
        if shutil.which("scontrol") is None:
            self._limits = Limits(note="SLURM's own limits are not known: there is no scontrol on this machine")
            return
        accounting = read_accounting()
        if accounting is None:
            if self._accounting is None:
                self._limits = Limits(note="SLURM's own limits are not known: slurmctld does not answer")
            return
        if self._accounting is not None and self._accounting.grants and not accounting.grants:
            return
        self._accounting = accounting
        if not self._queue:
            self._read_queue()
        own = [job for job in self._unfinished() if self._is_of_sweep(job, is_own)]
        limits = {}
        for allocation in self.config.allocations:
            ours = self._in(allocation, own)
            limits[allocation.name] = [without_own(limit, ours) for limit in limits_of(allocation, accounting)]
        self._limits = Limits(limits)

    def _is_of_sweep(self, job: QueuedJob, is_own: Callable[[str], bool]) -> bool:
        return job.job_id in self._own or is_own(job.name)

    def _unfinished(self) -> list[QueuedJob]:
        return [job for job in self._queue if not job.is_finished]

    def _in(self, allocation: AllocationConfig, jobs: Sequence[QueuedJob]) -> list[QueuedJob]:
        default = partition_of(allocation, self._accounting) if self._accounting is not None else None
        return jobs_in(allocation, jobs, default)

    def _others(self, is_own: Callable[[str], bool]) -> dict[str, dict[Resource, float]]:
        """Return what this user's jobs outside the sweep hold, by allocation, controllers (one core each) left out."""
        others = [
            job
            for job in self._unfinished()
            if job.uid == os.getuid() and not self._is_of_sweep(job, is_own) and not job.name.startswith(CONTROLLER_OF)
        ]
        return {one.name: resources_of(self._in(one, others)) for one in self.config.allocations}

    def submission_scopes(self) -> Sequence[str]:
        """Return the cluster's name with each partition that an allocation names: two allocations may share one,
        whatever their account and QOS."""
        known = self._accounting
        partitions = [
            (partition_of(allocation, known) if known is not None else options_of(allocation).partition) or "default"
            for allocation in self.config.allocations
        ]
        cluster = known.cluster if known is not None else "slurm"
        return sorted({f"{cluster}-{name}" for listed in partitions for name in listed.split(",")})

    def stop(self) -> None:
        """Do nothing: jobs continue without a controller."""


def read_accounting() -> Accounting | None:
    """Read what SLURM knows of limits; None where slurmctld does not answer.

    Without a database, or where limits are not enforced, only partitions have limits.
    """
    uid = os.getuid()
    user = _user_name(uid)
    partitions = answer_of("scontrol", "show", "partition", "-o")
    config = answer_of("scontrol", "show", "config") if partitions is not None else None
    if partitions is None or config is None:
        return None
    enforced = next((line for line in config.splitlines() if line.startswith("AccountingStorageEnforce")), "")
    kinds = parse_nodes(answer_of("sinfo", "--noheader", "--exact", f"--format={NODE_FORMAT}") or "")
    name = next((line for line in config.splitlines() if line.startswith("ClusterName")), "").partition("=")[2].strip()
    known = answer_of("scontrol", "show", "assoc_mgr", f"users={user}", "flags=assoc,qos")
    rows = parse_partitions(partitions)
    if known is None or not any(word in enforced for word in ("limits", "safe", "all")):
        return Accounting([], {}, rows, [], user, uid, name, kinds)
    associations, qos = parse_assoc_mgr(known)
    grants = answer_of("sacctmgr", "-nP", "show", "assoc", f"user={user}", f"format={ASSOCIATION_FIELDS}")
    defined = answer_of("sacctmgr", "-nP", "show", "qos", f"format={QOS_FIELDS}") if grants is not None else None
    accounts = [association.account for association in associations]
    # Without the database slurmctld still knows the limits of whoever has used them.
    granted = [] if grants is None else parse_grants(grants)
    complete = qos if defined is None else with_unused_limits(qos, defined, uid, accounts)
    return Accounting(associations, complete, rows, granted, user, uid, name, kinds)


def _queue_rows(text: str | None) -> list[QueuedJob] | None:
    """Return the rows of an answer of `squeue`; None where it is none."""
    try:
        return None if text is None else parse_squeue(text)
    except ValueError:
        return None


def _which(jobs: Sequence[JobIdentity]) -> list[str]:
    """Return options of sacct that name the jobs: their numbers, or their names where none has a number yet."""
    numbers = [job.job_id for job in jobs if job.submitted_at is not None and job.job_id is not None]
    if len(jobs) <= _JOBS_PER_COMMAND and not numbers:
        return [f"--name={','.join(job.tag for job in jobs)}"]
    if len(jobs) <= _JOBS_PER_COMMAND and len(numbers) == len(jobs):
        return [f"--jobs={','.join(numbers)}"]
    return []


def _user_name(uid: int) -> str:
    """Return the user's name by the system's own list, whatever $USER says."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _queued(tag: str, job: QueuedJob) -> JobObservation:
    ended = job.is_finished
    # Of a job that is pending, or was cancelled while pending, the start is a guess or the end; it has no nodes.
    started = job.started_at if job.nodes and known_state(job.state) not in ("PENDING", None) else None
    state = JobState.ENDED if ended else JobState.PENDING if known_state(job.state) == "PENDING" else JobState.RUNNING
    return JobObservation(
        tag=tag,
        job_id=job.job_id,
        state=state,
        nodes=job.nodes,
        reason=job.reason,
        never_starts=state is JobState.PENDING and never_starts(job.reason, job.partition),
        end=_ENDS.get(known_state(job.state) or "", JobEnd.EXITED) if ended else None,
        started_at=started,
        ended_at=job.ended_at if ended else None,
        uid=job.uid,
        submitted_at=job.submitted_at,
        is_suspended=known_state(job.state) in ("SUSPENDED", "STOPPED"),
    )


def _from_accounting(tag: str, job: AccountedJob) -> JobObservation:
    state = known_state(job.state) or ""
    # A signal is not an exit code, and the 0 of a job that was ended from outside means nothing.
    code = job.exit_code if state in ("COMPLETED", "FAILED") and not job.signal else None
    return JobObservation(
        tag,
        job.job_id,
        JobState.ENDED,
        job.nodes,
        end=_ENDS.get(state, JobEnd.EXITED),
        exit_code=code,
        started_at=job.started_at if job.nodes else None,
        ended_at=job.ended_at,
        uid=job.uid,
        submitted_at=job.submitted_at,
    )


BACKEND = Backend(
    title="SLURM",
    make=SlurmCluster,
    complete=check_settings,
    tick_seconds=30.0,
    option_keys=OPTION_KEYS,
    refused_keys=REFUSED_PARAMETERS,
)
