"""What a SLURM job runs: `python -m sweeps.clusters.slurm_job REQUEST.json`.

Each attempt of the request is a child with its own GPUs and its own ending; signals that ask for a checkpoint are
passed on. The job's exit code is the worst of theirs, so that accounting calls a failure a failure.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from sweeps.clusters.interface import JobRequest
from sweeps.tasks import fork_attempt, passing_on
from sweeps.work import preload


def main(path: str) -> int:
    request = JobRequest.from_dict(json.loads(Path(path).read_text()))
    given = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    children: dict[int, str] = {}
    with passing_on(children):
        for attempt in request.attempts:
            need = attempt.work.need
            if need.nodes == 1:
                preload(attempt.work)
            mine, given = given[: need.gpus_per_node], given[need.gpus_per_node :]
            gpus = {"CUDA_VISIBLE_DEVICES": ",".join(mine)} if mine and need.nodes == 1 else {}
            children[fork_attempt(attempt, gpus, Path(path))] = attempt.work.name
        worst = 0
        for pid in list(children):
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            worst = max(worst, code if code >= 0 else 128 - code)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
