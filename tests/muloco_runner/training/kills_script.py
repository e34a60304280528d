"""Trains a run while killing it over and over: one process that has imported torch forks each attempt.

    kills_script.py FOLDER SETTINGS KILLS SEED random|filesystem

`random`: SIGKILL some milliseconds after some step. `filesystem`: SIGKILL right before the n-th time that the attempt
opens, makes, renames or removes anything of a checkpoint, n counting up. Then one attempt to the end, whose exit code
is this script's. Fails if an attempt ended before it was killed.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from muloco_runner.config import ExecutionConfig
from muloco_runner.job import preload_for, run_job
from muloco_runner.record import RunFolder

FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def attempt(folder: RunFolder, execution: ExecutionConfig, number: int, last_event: int | None = None) -> int:
    """Forks one; returns its process id."""
    child = os.fork()
    if child:
        return child
    if last_event is not None:
        kill_before_event(last_event)
    os._exit(run_job(folder, execution, number))


def kill_before_event(last: int) -> None:
    left = last

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in FILE_EVENTS and "/checkpoint/" in str(arguments[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def wait_for_lines(file: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if file.exists() and file.read_bytes().count(b"\n") > count:
            return
        time.sleep(0.001)
    sys.exit(f"{file} did not reach {count} lines")


def main() -> None:
    folder, execution = RunFolder(sys.argv[1]), ExecutionConfig(**json.loads(sys.argv[2]))
    kills, generator, how = int(sys.argv[3]), random.Random(int(sys.argv[4])), sys.argv[5]
    preload_for(folder)
    for number in range(1, kills + 1):
        before = folder.record_file.read_bytes().count(b"\n") if folder.record_file.exists() else 0
        child = attempt(folder, execution, number, number if how == "filesystem" else None)
        if how == "random":
            wait_for_lines(folder.record_file, before + generator.randrange(7))
            time.sleep(generator.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"attempt {number} ended before it was killed")
    _, status = os.waitpid(attempt(folder, execution, kills + 1), 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
