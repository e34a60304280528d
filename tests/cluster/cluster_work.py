"""Light pieces of work for the emulated cluster: they leave behind what they saw, and end as they are told."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from muloco_runner.record import ExitCode, RunFolder, RunStatus

TWICE = 99
"""Exit code of an attempt that found another one at work in its folder."""


def count(
    folder: str,
    attempt: int,
    seconds: Sequence[float] = (0.0,),
    codes: Sequence[int] = (0,),
    deaf: bool = False,
    kilobytes: int = 0,
    memory_halvings: int = 0,
    gate: str | None = None,
    needs_gigabytes: float = 0.0,
) -> int:
    """Attempt n takes seconds[n], and until the file `gate` is there, and ends with codes[n] (the last from then on).

    Asked to stop it ends with 75, unless it is deaf. Of several ranks the first alone leaves files: `started` gets a
    line for each start, `result.json` is written by an attempt that ends with 0, `status.json` is its heartbeat. An
    attempt that meets another in its folder leaves `twice`. One whose job was given less memory than it needs ends as
    what watches it ends for one that the kernel has killed for that.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("SLURM_PROCID", "0")) > 0:
        time.sleep(seconds[min(attempt, len(seconds)) - 1])
        return 0
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: asked.append(number))
    with open(place / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (place / "twice").touch()
            return TWICE
        seen = {"attempt": attempt, "node": os.environ.get("SLURMD_NODENAME"), "time": time.time()}
        seen["gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        with open(place / "started", "a") as file:
            file.write(json.dumps(seen) + "\n")
        (place / "data").write_bytes(bytes(1024 * kilobytes))
        until = time.monotonic() + seconds[min(attempt, len(seconds)) - 1]
        beat = 0.0
        while time.monotonic() < until or (gate is not None and not os.path.exists(gate)):
            if asked and not deaf:
                return 75
            if time.monotonic() > beat:
                RunFolder(place).write_status(RunStatus(place.name, "running", attempt=attempt))
                beat = time.monotonic() + 1.0
            time.sleep(0.02)
        if 1024 * needs_gigabytes > int(os.environ.get("SLURM_MEM_PER_NODE", "0")):
            return ExitCode.OUT_OF_HOST_MEMORY
        code = codes[min(attempt, len(codes)) - 1]
        if code == 0:
            (place / "result.json").write_text("{}")
        return code
