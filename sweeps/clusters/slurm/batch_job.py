"""What submitit's runner calls in a SLURM job: the attempts of a request, by the request's file.

Each attempt of the request is a child process with its own GPUs and its own exit record; signals that ask for a
checkpoint are forwarded. The job's exit code is the highest of theirs, so that accounting shows a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from muloco_runner.record import KILLED_BY_SIGNAL, STOPPED_CODES, ExitCode, write_atomically
from sweeps.clusters.slurm.runner import BLOCKED
from sweeps.clusters.slurm.script import PAYLOADS, job_script, payload_name
from sweeps.clusters.slurm.slurm_settings import options_of_job
from sweeps.engine.cluster import JobRequest
from sweeps.engine.cluster_config import AllocationConfig
from sweeps.engine.outcome import Ending
from sweeps.engine.work import Attempt
from sweeps.node.attempt_files import read_ending, write_ending
from sweeps.node.memory_kills import memory_kills
from sweeps.node.run_attempt import preload
from sweeps.node.tasks import RankCommand, catch_up, exit_code_of, fork_attempt, passing_on

_PICKLE_PROTOCOL = 4
"""Read by every Python that this project runs on."""


def write_job(
    request: JobRequest, allocation: AllocationConfig, setup: Sequence[str], folder: Path, after: Sequence[str] = ()
) -> Path:
    """Write the request, its payload and its script, all before the job is submitted; return the script. `after` are
    numbers of jobs that must have ended before it starts."""
    from submitit.core.utils import DelayedSubmission

    options = options_of_job(request, allocation)
    request_file, script = folder / "requests" / f"{request.tag}.json", folder / "scripts" / f"{request.tag}.sh"
    write_atomically(request_file, json.dumps(request.to_dict()))
    payload = DelayedSubmission(
        run_request, str(request_file), options.signal_delay_s, options.python or "", options.srun_args
    )
    # By pickle itself, which knows functions by their names alone.
    write_atomically(folder / PAYLOADS / payload_name(request.tag), pickle.dumps(payload, _PICKLE_PROTOCOL))
    write_atomically(script, job_script(request, allocation, setup, folder, after))
    return script


def run_request(request_file: str, signal_seconds: int, python: str, srun_args: Sequence[str]) -> NoReturn:
    """Run the request of that file and end this process with its exit code: submitit's would be 0.

    Signals are blocked here (`sweeps.clusters.slurm.runner`): none may meet submitit's handlers, which come back
    afterwards. `python` and `srun_args` start the ranks of an attempt over several nodes.
    """
    request = JobRequest.from_dict(json.loads(Path(request_file).read_text()))
    children: dict[int, Attempt] = {}
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    with passing_on(children) as received:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
        try:
            code = _run(request, RankCommand(Path(request_file), python, tuple(srun_args)), children, received,
                        signal_seconds)  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    sys.exit(code)


def _run(
    request: JobRequest,
    ranks: RankCommand,
    children: dict[int, Attempt],
    received: Sequence[tuple[int, float]],
    signal_seconds: int,
) -> int:
    given = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    started_at = time.time()
    killed_before = memory_kills()
    worst = 0
    for attempt in request.attempts:
        need = attempt.work.need
        if need.nodes == 1:
            preload(attempt.work)
        mine, given = given[: need.gpus_per_node], given[need.gpus_per_node :]
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(mine)} if mine and need.nodes == 1 else {}
        pid = fork_attempt(attempt, gpus, ranks)
        children[pid] = attempt
        catch_up(pid, received)
    for pid, attempt in children.items():
        _, status = os.waitpid(pid, 0)
        code = exit_code_of(status)
        if code == KILLED_BY_SIGNAL + signal.SIGKILL and memory_kills() > killed_before:
            code = ExitCode.OUT_OF_HOST_MEMORY
            with contextlib.suppress(OSError):
                _end_for(attempt, code, started_at)
        worst = max(worst, code)
        # A full disk under one run must not end the others.
        with contextlib.suppress(OSError):
            if received:
                early = received[0][1] < started_at + 60 * request.wall_minutes - 2 * signal_seconds
                _add_to_ending(attempt, code, started_at, early)
    return worst


def _add_to_ending(attempt: Attempt, code: int, started_at: float, early: bool) -> None:
    """Says of an attempt that was asked to stop whether that was for others, which is so where the signal came long
    before the time limit could be its reason; and all, of one that was still starting up and could not speak for
    itself."""
    ending = read_ending(attempt)
    if ending is None and code in STOPPED_CODES:
        ending = _end_for(attempt, code, started_at)
    if ending is not None:
        write_ending(attempt, replace(ending, stopped_early=early))


def _end_for(attempt: Attempt, code: int, started_at: float) -> Ending:
    """Write the ending of an attempt that could not do so itself."""
    attempt.folder.mkdir(parents=True, exist_ok=True)
    ending = Ending(code, socket.gethostname(), started_at, time.time(), by_watcher=True)
    write_ending(attempt, ending)
    return ending
