"""What a SLURM job runs: `python -m sweeps.clusters.slurm.batch_job REQUEST.json`.

Each attempt of the request is a child process with its own GPUs and its own exit record; signals that ask for a
checkpoint are forwarded. The job's exit code is the highest of theirs, so that accounting shows a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

from muloco_runner.record import STOPPED_CODES
from sweeps.clusters.slurm.script import SIGNAL_SECONDS
from sweeps.engine.cluster import JobRequest
from sweeps.engine.outcome import Ending
from sweeps.engine.work import Attempt
from sweeps.node.attempt_files import read_ending, write_ending
from sweeps.node.run_attempt import preload
from sweeps.node.tasks import catch_up, exit_code_of, fork_attempt, passing_on


def main(path: str) -> int:
    request = JobRequest.from_dict(json.loads(Path(path).read_text()))
    given = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    started_at = time.time()
    children: dict[int, Attempt] = {}
    worst = 0
    with passing_on(children) as received:
        for attempt in request.attempts:
            need = attempt.work.need
            if need.nodes == 1:
                preload(attempt.work)
            mine, given = given[: need.gpus_per_node], given[need.gpus_per_node :]
            gpus = {"CUDA_VISIBLE_DEVICES": ",".join(mine)} if mine and need.nodes == 1 else {}
            pid = fork_attempt(attempt, gpus, Path(path))
            children[pid] = attempt
            catch_up(pid, received)
        for pid, attempt in children.items():
            _, status = os.waitpid(pid, 0)
            code = exit_code_of(status)
            worst = max(worst, code)
            # A full disk under one run must not end the others.
            with contextlib.suppress(OSError):
                if received:
                    _add_to_ending(attempt, code, started_at, _is_early(received[0][1], started_at, request))
    return worst


def _is_early(signalled_at: float, started_at: float, request: JobRequest) -> bool:
    """Return whether the stop signal came long before the time limit could be its reason."""
    return signalled_at < started_at + 60 * request.wall_minutes - 2 * SIGNAL_SECONDS


def _add_to_ending(attempt: Attempt, code: int, started_at: float, early: bool) -> None:
    """Says of an attempt that was asked to stop whether that was for others; and all, of one that was still starting up
    and could not speak for itself."""
    ending = read_ending(attempt)
    if ending is None and code in STOPPED_CODES:
        attempt.folder.mkdir(parents=True, exist_ok=True)
        ending = Ending(code, socket.gethostname(), started_at, time.time())
    if ending is not None:
        write_ending(attempt, replace(ending, stopped_early=early))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
