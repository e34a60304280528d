"""What a SLURM job runs: `python -m sweeps.clusters.slurm_job REQUEST.json`.

Each attempt of the request is a child with its own GPUs and its own ending; signals that ask for a checkpoint are
passed on. The job's exit code is the worst of theirs, so that accounting calls a failure a failure.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from sweeps.clusters.interface import JobRequest
from sweeps.work import fork_attempt

_PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


def main(path: str) -> int:
    request = JobRequest.from_dict(json.loads(Path(path).read_text()))
    given = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    children: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for pid in children:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    for attempt in request.attempts:
        wanted = attempt.work.need.gpus_per_node
        if given and wanted:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(given[:wanted])
            given = given[wanted:]
        children.append(fork_attempt(attempt))
    worst = 0
    for pid in list(children):
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        worst = max(worst, code if code >= 0 else 128 - code)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
