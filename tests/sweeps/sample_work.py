"""Pieces of work for tests: they count in a file what they did, and end as they are told."""

import os
import signal
import time
from pathlib import Path
from typing import Any


def count(folder: str, attempt: int, memory_halvings: int = 0, **plan: Any) -> int:
    """Takes `plan["seconds"]`, and until the file `plan["gate"]` is there; obeys TERM with 75, and ends with the
    attempt's exit code of `plan["codes"]`.

    `result.json` is written once, by an attempt that ends with 0; `started` has a line for each start.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    with open(place / "started", "a") as file:
        file.write(f"{attempt} {os.getpid()} {time.time()}\n")
    deadline = time.monotonic() + plan.get("seconds", 0.0)
    while time.monotonic() < deadline or not os.path.exists(plan.get("gate", folder)):
        if stopped:
            return 75
        time.sleep(0.01)
    codes = plan.get("codes", [0])
    code = codes[min(attempt, len(codes)) - 1]
    if code == 0:
        with open(place / "result.json", "x") as file:
            file.write("{}")
    return code


def train(folder: str, attempt: int, execution: dict[str, Any], memory_halvings: int = 0) -> int:
    """Trains; the first attempt is killed at step 60, the second asked to stop at step 120."""
    from muloco_runner.config import ExecutionConfig
    from muloco_runner.job import run_job
    from muloco_runner.record import RunFolder, StepRecord
    from muloco_runner.training import metrics

    ends = {1: (60, signal.SIGKILL), 2: (120, signal.SIGTERM)}
    metrics._HEARTBEAT_SECONDS = 0.0

    def on_record(record: StepRecord) -> None:
        if attempt in ends and record.step == ends[attempt][0]:
            os.kill(os.getpid(), ends[attempt][1])

    return int(run_job(RunFolder(folder), ExecutionConfig(**execution), attempt, on_record))
