"""One rank of several jobs in a row, as `srun` would have started it: one process that has imported torch forks each.
Blocks are compiled by the backend that COMPILER names.

Arguments: a file to write exit codes to, then for each job its settings as JSON, its run's folder, the step of the
first checkpoint after which its first rank is killed (0: never), and a folder to copy the run to after it (- for none).
"""

import functools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch

from muloco_runner.config import ExecutionConfig
from muloco_runner.job import preload_for, run_job
from muloco_runner.record import RunFolder, StepRecord


def carry_out(settings: str, folder: RunFolder, kill_at: int, attempt: int) -> int:
    def on_record(record: StepRecord) -> None:
        saved = [int(path.name[5:]) for path in folder.checkpoint_dir.glob("step-*")]
        if kill_at and max(saved, default=0) >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return run_job(folder, ExecutionConfig(**json.loads(settings)), attempt, on_record)


def main() -> None:
    out, *words = sys.argv[1:]
    codes = []
    torch.compile = functools.partial(torch.compile, backend=os.environ["COMPILER"])  # type: ignore[assignment]
    preload_for(RunFolder(words[1]))
    for number, (settings, path, kill_at, copy) in enumerate(zip(*(words[n::4] for n in range(4)), strict=True), 1):
        os.environ["SLURM_JOB_ID"] = f"{number}"
        child = os.fork()
        if child == 0:
            os._exit(carry_out(settings, RunFolder(path), int(kill_at), number))
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if copy != "-" and os.environ["SLURM_PROCID"] == "0":
            shutil.copytree(path, copy)
    Path(out).write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
