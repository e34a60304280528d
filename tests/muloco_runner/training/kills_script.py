"""Trains a run while killing it over and over: one process that has imported torch forks each attempt.

    kills_script.py FOLDER SETTINGS KILLS SEED random|filesystem

`random`: a deadly signal some milliseconds after some step. `filesystem`: SIGKILL right before the n-th time that the
attempt opens, makes, renames or removes anything of a checkpoint, n counting up. Then one attempt to the end, whose
exit code is this script's. Fails if an attempt ended before it was killed.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable

from muloco_runner.config import ExecutionConfig
from muloco_runner.job import preload_for, run_job
from muloco_runner.record import RunFolder, StepRecord

FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def attempt(
    folder: RunFolder,
    execution: ExecutionConfig,
    number: int,
    last_event: int | None = None,
    on_record: Callable[[StepRecord], None] = lambda record: None,
) -> int:
    """Forks one; returns its process id."""
    child = os.fork()
    if child:
        return child
    if last_event is not None:
        kill_before_event(last_event)
    os._exit(run_job(folder, execution, number, on_record))


def kill_before_event(last: int) -> None:
    left = last

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in FILE_EVENTS and "/checkpoint/" in str(arguments[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def kill_after(steps: int, seconds: float) -> Callable[[StepRecord], None]:
    """The attempt sees to it itself: whoever watches from outside may be late."""
    left = steps

    def on_record(record: StepRecord) -> None:
        nonlocal left
        if left == 0:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        left -= 1

    return on_record


def main() -> None:
    folder, execution = RunFolder(sys.argv[1]), ExecutionConfig(**json.loads(sys.argv[2]))
    kills, generator, how = int(sys.argv[3]), random.Random(int(sys.argv[4])), sys.argv[5]
    preload_for(folder)
    for number in range(1, kills + 1):
        if how == "filesystem":
            child = attempt(folder, execution, number, last_event=number)
        else:
            on_record = kill_after(generator.randrange(7), generator.uniform(0, 0.01))
            child = attempt(folder, execution, number, on_record=on_record)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"attempt {number} ended before it was killed")
    _, status = os.waitpid(attempt(folder, execution, kills + 1), 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
