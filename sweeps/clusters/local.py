"""This machine as a cluster: as many slots as the quota allows, each a process that forks one child an attempt.

    cluster/requests/<tag>.json    pending
    cluster/taken/<slot>/<tag>.json  the job that the slot runs
    cluster/ended/<tag>.json       how it ended
    cluster/cancel/<tag>           asks its slot to end it
    cluster/slots/<slot>.lock      locked by the slot's process; the kernel unlocks it when that dies

Slots are started by submitit's local executor and outlive the controller: its successor finds them running. They import
torch and read the corpus once, since that takes as long as a small run. A slot takes a job by renaming its file, which
succeeds for one slot only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from muloco_runner.config import ConfigError
from muloco_runner.record import write_atomically
from muloco_sweeps import PYTHON
from sweeps.clusters.backend import Backend
from sweeps.clusters.this_machine import usable_cores, usable_gpus
from sweeps.engine.cluster import JobEnd, JobIdentity, JobObservation, JobRequest, JobState, Limits, Observation
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.outcome import Outcome
from sweeps.engine.work import Attempt, Need
from sweeps.node.attempt_files import read_outcome, write_error_in_folder
from sweeps.node.code_snapshot import importing_from
from sweeps.node.disk_space import is_disk_full
from sweeps.node.old_formats import request_now
from sweeps.node.run_attempt import preload
from sweeps.node.tasks import exit_code_of, fork_attempt

_FULL_DISK_POLL_SECONDS = 0.5
_POLL_SECONDS = 0.05
_IDLE_SECONDS = 30.0
"""A slot ends after this time without a job and without a controller."""


class LocalCluster:
    """`submit`, `observe`, `cancel`, `limits` over files. Each job takes one slot."""

    outlives_controller = False
    queues_successors = False

    def __init__(self, folder: Path, num_slots: int, gpus: Sequence[str] = ()) -> None:
        self.folder, self.num_slots, self.gpus = folder, num_slots, gpus

    def check(self) -> None:
        """Do nothing: what this machine has was checked when the file was read."""

    def start(self) -> None:
        """Make the folders. Slots are started with the first request, since they run its code."""
        for name in ("requests", "ended", "cancel", "slots", "taken"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def _start_slots(self) -> None:
        """Start the slots that are not running, where requests are pending."""
        waiting = [_code_of(path) for path in sorted((self.folder / "requests").glob("*.json"))]
        for slot in range(self.num_slots) if waiting else ():
            if not _is_locked(self._lock(slot)) and not self._is_starting(slot):
                _starting(self.folder, slot).touch()
                self._start_slot(slot, waiting[slot % len(waiting)] or "")

    def _start_slot(self, slot: int, code: str) -> None:
        import submitit

        python = shlex.join(PYTHON)
        executor = submitit.LocalExecutor(_without_patterns(self.folder / "submitit" / str(slot)), python=python)
        # A slot has no time limit of its own; submitit's must lie beyond any sweep.
        executor.update_parameters(timeout_min=60 * 24 * 365, gpus_per_node=0, tasks_per_node=1)
        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        threads = max(1, usable_cores() // self.num_slots)
        with _interrupts_blocked(), importing_from(code):
            executor.submit(serve_slot, str(self.folder), slot, gpu, threads, code)

    def submit(self, request: JobRequest, after: Sequence[str] = ()) -> str:
        assert not after
        if not self._has_ended(request.tag) and self._taken_by(request.tag) is None:
            write_atomically(self.folder / "requests" / f"{request.tag}.json", json.dumps(request.to_dict()))
        self._keep_slots()
        return request.tag

    def observe(self, jobs: Sequence[JobIdentity]) -> Observation:
        self._keep_slots()
        found: dict[str, JobObservation] = {}
        for job in jobs:
            seen = self._observe(job.tag)
            if seen is not None:
                found[job.tag] = seen
        return Observation(found)

    def absent(self, jobs: Sequence[JobIdentity]) -> Collection[str]:
        """Return all: the observation that misses them has looked for the files of each."""
        return {job.tag for job in jobs}

    def _observe(self, tag: str) -> JobObservation | None:
        """Look for a job's file in the order of its states, so that one that moves meanwhile is found."""
        if (self.folder / "requests" / f"{tag}.json").exists():
            return JobObservation(tag, tag, JobState.PENDING, reason="waits for a slot")
        slot = self._taken_by(tag)
        if slot is not None and not self._has_ended(tag):
            path = self.folder / "taken" / str(slot) / f"{tag}.json"
            alive = _is_locked(self._lock(slot))
            # Read after the lock: a slot that has just ended its job and exited leaves no such file.
            with contextlib.suppress(FileNotFoundError):
                started_at = path.stat().st_mtime
                if alive:
                    return JobObservation(tag, tag, JobState.RUNNING, started_at=started_at)
                # Its slot is dead, and the attempt with it.
                _end(self.folder, slot, tag, JobEnd.LOST, None)
        if self._has_ended(tag):
            values = json.loads((self.folder / "ended" / f"{tag}.json").read_text())
            return JobObservation(
                tag,
                tag,
                JobState.ENDED,
                end=JobEnd(values["end"]),
                exit_code=values["exit_code"],
                ended_at=values["at"],
            )
        return None

    def _has_ended(self, tag: str) -> bool:
        return (self.folder / "ended" / f"{tag}.json").exists()

    def outcome(self, attempt: Attempt) -> Outcome:
        return read_outcome(attempt)

    def write_error(self, attempt: Attempt) -> str:
        return write_error_in_folder(attempt)

    def cancel(self, jobs: Sequence[JobIdentity]) -> None:
        for job in jobs:
            (self.folder / "cancel" / job.tag).touch()
        self.cancel_pending(jobs)

    def cancel_pending(self, jobs: Sequence[JobIdentity]) -> None:
        for tag in (job.tag for job in jobs):
            with contextlib.suppress(FileNotFoundError):
                # Not yet taken: whoever renames it first has it.
                taken = self.folder / "requests" / f"{tag}.cancelled"
                os.rename(self.folder / "requests" / f"{tag}.json", taken)
                _write_end(self.folder, tag, JobEnd.CANCELLED, None)
                taken.unlink()

    def orphaned_jobs(self, prefix: str) -> Sequence[JobIdentity]:
        """Return none: requests are in the sweep's own folder."""
        return []

    def limits(self, is_own: Callable[[str], bool]) -> Limits:
        return Limits()

    def submission_scopes(self) -> Sequence[str]:
        """Return none: the slots are this sweep's own."""
        return ()

    def stop(self) -> None:
        """Ask the slots to end once they are idle, as they do unasked a while after their controller's end."""
        with contextlib.suppress(OSError):
            (self.folder / "slots" / "stop").touch()

    def _keep_slots(self) -> None:
        (self.folder / "slots" / "stop").unlink(missing_ok=True)
        os.utime(self.folder / "slots")
        self._start_slots()

    def _is_starting(self, slot: int) -> bool:
        """Return whether the slot was started and has no lock yet, which takes a second."""
        with contextlib.suppress(FileNotFoundError):
            return time.time() - _starting(self.folder, slot).stat().st_mtime < _IDLE_SECONDS
        return False

    def _lock(self, slot: int) -> Path:
        return self.folder / "slots" / f"{slot}.lock"

    def _taken_by(self, tag: str) -> int | None:
        # Any slot: an earlier controller may have had more of them.
        for path in (self.folder / "taken").glob(f"*/{tag}.json"):
            return int(path.parent.name)
        return None


def _without_patterns(folder: Path) -> Path:
    """Return a path to the folder in which submitit replaces nothing: it takes %j and the like for its own."""
    if "%" not in str(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    link = Path(tempfile.mkdtemp(prefix="slot-")) / "submitit"
    link.symlink_to(folder.absolute())
    return link


def _starting(folder: Path, slot: int) -> Path:
    """The file that marks a slot between its start and its lock."""
    return folder / "slots" / f"{slot}.starting"


def fill_in(config: ClusterConfig) -> ClusterConfig:
    """Return the config with what this machine has in place of what the file leaves open."""
    if config.controller:
        raise ConfigError(f"cluster={config.name}: controller has no effect with kind=local: remove it")
    if len(config.allocations) != 1:
        raise ConfigError(f"cluster={config.name}: kind=local has one allocation, this machine: keep one")
    (allocation,) = config.allocations
    gpus = usable_gpus() if config.device != "cpu" else []
    slots = allocation.quota.jobs or len(gpus) or usable_cores()
    if gpus and slots > len(gpus):
        raise ConfigError(
            f"cluster={config.name}: quota.jobs={slots}, but this machine has {len(gpus)} GPUs: ask for at most that"
        )
    quota = dataclasses.replace(allocation.quota, jobs=slots)
    filled = dataclasses.replace(allocation, quota=quota, gpus_per_node=1 if gpus else 0)
    return dataclasses.replace(config, allocations=[filled])


def _make(config: ClusterConfig, folder: Path) -> LocalCluster:
    (allocation,) = config.allocations
    gpus = usable_gpus() if allocation.gpus_per_node else ()
    jobs = allocation.quota.jobs
    assert jobs is not None
    return LocalCluster(folder, jobs, gpus)


def _fill_allocation(allocation: dict[str, Any], needs: Sequence[Need]) -> dict[str, Any]:
    """No more slots than there are jobs, each with the cores it asks for; `fill_in` counts the GPUs."""
    cores = usable_cores()
    if allocation["quota"]["jobs"] is None and not any(need.gpus_per_node for need in needs):
        cpus = min(cores, max(need.cpus_per_node for need in needs))
        quota = {**allocation["quota"], "jobs": max(1, min(cores // cpus, len(needs)))}
        allocation = {**allocation, "quota": quota}
    return {"cpus_per_node": cores, **allocation, "gpus_per_node": 0}


BACKEND = Backend(
    title="this machine",
    make=_make,
    complete=fill_in,
    tick_seconds=0.1,
    num_nodes=1,
    fill_allocation=_fill_allocation,
)


def serve_slot(folder_name: str, slot: int, gpu: str | None, threads: int, code: str) -> None:
    """Run requests for `code`, oldest first, each attempt in a child; return when left alone, or when all that waits is
    for a slot of other code.

    A controller starts slots of other code than its own, by this name and with these arguments: they do not change.
    """
    folder = Path(folder_name)
    # SIGINT is blocked in this process since its start. A slot ignores it; its attempts must receive it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    with _slot_lock(folder / "slots" / f"{slot}.lock") as alone:
        _starting(folder, slot).unlink(missing_ok=True)
        if not alone:
            return
        mine = folder / "taken" / str(slot)
        mine.mkdir(parents=True, exist_ok=True)
        for left in mine.glob("*.json"):
            # A slot of this number died while it ran that job.
            _end(folder, slot, left.stem, JobEnd.LOST, None)
        idle_since = time.monotonic()
        while not _must_end(folder, idle_since):
            waiting = sorted((folder / "requests").glob("*.json"))
            codes = [_code_of(path) for path in waiting]
            tag = _take((path for path, wanted in zip(waiting, codes, strict=True) if wanted == code), mine)
            if tag is None and any(wanted not in (None, code) for wanted in codes):
                return
            if tag is None:
                time.sleep(_POLL_SECONDS)
                continue
            _run(folder, slot, tag)
            idle_since = time.monotonic()


def _must_end(folder: Path, idle_since: float) -> bool:
    if (folder / "slots" / "stop").exists():
        return True
    abandoned = time.time() - (folder / "slots").stat().st_mtime > _IDLE_SECONDS
    return abandoned and time.monotonic() - idle_since > _IDLE_SECONDS


def _take(waiting: Iterable[Path], mine: Path) -> str | None:
    for path in waiting:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
            os.rename(path, mine / path.name)
            return path.stem
    return None


def _code_of(path: Path) -> str | None:
    """Return the code that a request is for; None where a slot has just taken it."""
    try:
        return str(json.loads(path.read_text())["code"])
    except FileNotFoundError:
        return None


def _run(folder: Path, slot: int, tag: str) -> None:
    # Of code that is gone, this slot runs what an earlier version may have asked for.
    request = JobRequest.from_dict(request_now(json.loads((folder / "taken" / str(slot) / f"{tag}.json").read_text())))
    code = 0
    for attempt in request.attempts:
        preload(attempt.work)
        code = max(code, _watch(fork_attempt(attempt), folder / "cancel" / tag))
    cancelled = (folder / "cancel" / tag).exists()
    idle_since = time.monotonic()
    while True:
        try:
            return _end(folder, slot, tag, JobEnd.CANCELLED if cancelled else JobEnd.EXITED, code)
        except OSError as error:
            if not is_disk_full(error) or _must_end(folder, idle_since):
                raise
            time.sleep(_FULL_DISK_POLL_SECONDS)


def _watch(pid: int, cancel: Path) -> int:
    """Wait for the child and return its exit code; send it SIGTERM once the file `cancel` exists."""
    signalled = False
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return exit_code_of(status)
        if not signalled and cancel.exists():
            os.kill(pid, signal.SIGTERM)
            signalled = True
        time.sleep(_POLL_SECONDS)


def _end(folder: Path, slot: int, tag: str, end: JobEnd, exit_code: int | None) -> None:
    _write_end(folder, tag, end, exit_code)
    (folder / "taken" / str(slot) / f"{tag}.json").unlink(missing_ok=True)


def _write_end(folder: Path, tag: str, end: JobEnd, exit_code: int | None) -> None:
    values = {"end": end.value, "exit_code": exit_code, "at": time.time()}
    write_atomically(folder / "ended" / f"{tag}.json", json.dumps(values))


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT in processes started within: Ctrl-C on a terminal reaches every process, and a slot must outlive it
    to report how its attempt ended. Blocked, not ignored: a Ctrl-C that comes meanwhile is delivered afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _slot_lock(path: Path) -> Iterator[bool]:
    """Yield whether this process holds the lock, which ends with it: forked children do not inherit it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        for _ in range(20):
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                # Locked by another slot, or for an instant by a process that tests the lock.
                time.sleep(_POLL_SECONDS)
            else:
                yield True
                return
        yield False


def _is_locked(path: Path) -> bool:
    """Return whether another process holds the lock, a POSIX record lock."""
    file: IO[str]
    try:
        with open(path) as file:
            return _conflicts(file)
    except FileNotFoundError:
        return False


def _conflicts(file: IO[str]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.lockf(file, fcntl.LOCK_UN)
    return False
