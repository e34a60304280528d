"""What a SLURM job runs: `python -m sweeps.clusters.slurm_job REQUEST.json`.

Each attempt of the request is a child with its own GPUs and its own ending; signals that ask for a checkpoint are
passed on. The job's exit code is the worst of theirs, so that accounting calls a failure a failure.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

from sweeps.clusters.interface import JobRequest
from sweeps.tasks import STOPPED_CODES, catch_up, exit_code_of, fork_attempt, passing_on
from sweeps.work import Attempt, Ending, preload, read_ending, write_ending


def main(path: str) -> int:
    request = JobRequest.from_dict(json.loads(Path(path).read_text()))
    given = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    started_at = time.time()
    children: dict[int, Attempt] = {}
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
        worst = 0
        for pid, attempt in children.items():
            _, status = os.waitpid(pid, 0)
            code = exit_code_of(status)
            worst = max(worst, code)
            if code in STOPPED_CODES and read_ending(attempt) is None:
                # It was still starting up, and left no word of its own.
                attempt.folder.mkdir(parents=True, exist_ok=True)
                write_ending(attempt, Ending(code, socket.gethostname(), started_at, time.time()))
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
