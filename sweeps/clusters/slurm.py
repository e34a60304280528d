"""SLURM behind the clusters' interface: one `squeue` a look, and one `sacct` where a job has left the queue.

A job carries its tag as comment and name, so that it is found whether or not `sbatch` lived to say its number. SLURM's
word on how a job ended counts only where the attempt left none.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from getpass import getuser
from pathlib import Path

from muloco_runner.record import write_atomically
from sweeps.clusters.interface import (
    JobEnd,
    JobObservation,
    JobRequest,
    JobState,
    Limits,
    Observation,
    RefusalKind,
    Refused,
)
from sweeps.clusters.slurm_text import (
    SACCT_FIELDS,
    SQUEUE_FORMAT,
    AccountedJob,
    QueuedJob,
    classify_refusal,
    known_state,
    parse_sacct,
    parse_squeue,
)
from sweeps.config import AllocationConfig, ClusterConfig

_ANSWER_SECONDS = 60.0
"""A scheduler that takes longer has not answered."""
_SIGNAL_SECONDS = 120
"""USR1 comes so long before the time limit, or up to a minute earlier still."""
_ENDS = {
    "TIMEOUT": JobEnd.TIMEOUT,
    "DEADLINE": JobEnd.TIMEOUT,
    "PREEMPTED": JobEnd.PREEMPTED,
    "NODE_FAIL": JobEnd.NODE_FAILURE,
    "BOOT_FAIL": JobEnd.NODE_FAILURE,
    "OUT_OF_MEMORY": JobEnd.OUT_OF_MEMORY,
    "CANCELLED": JobEnd.CANCELLED,
}


def batch_script(request: JobRequest, allocation: AllocationConfig, setup: Sequence[str], folder: Path) -> str:
    """The text of the job; `setup` are the lines of shell from the cluster's own file."""
    options: dict[str, object] = {
        "job-name": request.tag,
        "comment": request.tag,
        "nodes": request.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": request.cpus_per_node,
        "time": max(1, round(request.wall_minutes)),
        "output": folder / "logs" / f"{request.tag}.log",
        "open-mode": "append",
        "signal": f"B:USR1@{_SIGNAL_SECONDS}",
        # A requeue by SLURM would be an attempt that nobody has counted.
        "no-requeue": None,
        "partition": allocation.partition,
        "account": allocation.account,
        "qos": allocation.qos,
        **allocation.sbatch,
    }
    if request.gpus_per_node:
        options["gres"] = f"gpu:{request.gpus_per_node}"
    if request.excluded_nodes:
        options["exclude"] = ",".join(request.excluded_nodes)
    lines = ["#!/bin/bash"]
    for name, value in options.items():
        if name == "no-requeue":
            lines.append("#SBATCH --no-requeue")
        elif value is not None:
            lines.append(f"#SBATCH --{name}={shlex.quote(str(value))}")
    command = [sys.executable, "-m", "sweeps.clusters.slurm_job", str(folder / "requests" / f"{request.tag}.json")]
    # exec: the batch shell would keep the signals to itself.
    return "\n".join([*lines, *setup, f"exec {shlex.join(command)}", ""])


class SlurmCluster:
    """`submit`, `observe` and `cancel` by SLURM's commands."""

    outlives_controller = True

    def __init__(self, config: ClusterConfig, folder: Path) -> None:
        self.config, self.folder = config, folder.resolve()

    def start(self) -> None:
        for name in ("requests", "scripts", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def submit(self, request: JobRequest) -> str:
        wide = [attempt.work.name for attempt in request.attempts if attempt.work.need.gpus > 1]
        if wide:
            raise Refused(RefusalKind.FATAL, f"{wide[0]} needs several GPUs, and a job here starts one process a run")
        self.start()
        write_atomically(self.folder / "requests" / f"{request.tag}.json", json.dumps(request.to_dict()))
        script = self.folder / "scripts" / f"{request.tag}.sh"
        text = batch_script(request, self.config.allocation(request.allocation), self.config.setup, self.folder)
        write_atomically(script, text)
        try:
            done = _run(["sbatch", "--parsable", str(script)])
        except subprocess.TimeoutExpired:
            raise Refused(RefusalKind.MAY_EXIST, "sbatch did not answer") from None
        if done.returncode:
            message = " ".join(done.stderr.split())
            raise Refused(classify_refusal(done.stderr), message)
        return done.stdout.strip().partition(";")[0]

    def observe(self, tags: Sequence[str]) -> Observation:
        if not tags:
            return Observation({})
        try:
            queue = _run(["squeue", "--noheader", "--states=all", f"--user={getuser()}", f"--format={SQUEUE_FORMAT}"])
            if queue.returncode:
                return Observation({}, complete=False)
            jobs = {job.comment: _queued(job) for job in parse_squeue(queue.stdout) if job.comment in tags}
            missing = [tag for tag in tags if tag not in jobs]
            accounted = self._accounted(missing) if missing else {}
        except subprocess.TimeoutExpired:
            return Observation({}, complete=False)
        # Without accounting a job that has left the queue may have ended in any way.
        return Observation({**jobs, **(accounted or {})}, complete=accounted is not None)

    def _accounted(self, tags: Sequence[str]) -> Mapping[str, JobObservation] | None:
        """None where accounting does not answer."""
        # The default window begins at midnight.
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 30 * 24 * 3600))
        done = _run(["sacct", "-nPXD", f"--user={getuser()}", f"--starttime={since}", f"--format={SACCT_FIELDS}"])
        if done.returncode:
            return None
        return {job.comment: _from_accounting(job) for job in parse_sacct(done.stdout) if job.comment in tags}

    def cancel(self, tags: Sequence[str]) -> None:
        """TERM first: what runs saves itself; SLURM's KillWait bounds how long it may take."""
        for tag in tags:
            _run(["scancel", f"--user={getuser()}", f"--name={tag}"])

    def limits(self) -> Limits:
        """None beyond the user's own: what the scheduler limits further, it lets wait."""
        return Limits()

    def stop(self) -> None:
        """Jobs go on without a controller."""


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)


def _queued(job: QueuedJob) -> JobObservation:
    ended = job.is_finished
    started = _unix(job.started_at) if ended or known_state(job.state) not in ("PENDING", None) else None
    state = JobState.ENDED if ended else JobState.PENDING if known_state(job.state) == "PENDING" else JobState.RUNNING
    return JobObservation(
        tag=job.comment,
        job_id=job.job_id,
        state=state,
        nodes=job.nodes,
        reason=job.reason,
        end=_ENDS.get(known_state(job.state) or "", JobEnd.EXITED) if ended else None,
        started_at=started,
    )


def _from_accounting(job: AccountedJob) -> JobObservation:
    state = known_state(job.state) or ""
    if not job.is_finished:
        return JobObservation(job.comment, job.job_id, JobState.RUNNING, job.nodes)
    # A signal is no exit code; 0 of a job that was ended from outside says nothing.
    code = job.exit_code if state in ("COMPLETED", "FAILED") and not job.signal else None
    return JobObservation(
        job.comment, job.job_id, JobState.ENDED, job.nodes, end=_ENDS.get(state, JobEnd.EXITED), exit_code=code
    )


def _unix(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None
