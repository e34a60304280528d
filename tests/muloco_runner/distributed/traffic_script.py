"""One rank of two that trains runs and watches what torch is asked to send meanwhile, beside what the trainer counts.

Arguments: the rank, then a JSON file with a list of {folder, execution}. Leaves `watched-RANK.json` in each folder: the
bytes sent and received by torch's collectives while the training clock ran, and those that the emulated link was given.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from muloco_runner.config import ExecutionConfig
from muloco_runner.diloco.streaming import Fragment
from muloco_runner.distributed.traffic import EmulatedLink
from muloco_runner.job import run_job
from muloco_runner.record import RunFolder
from muloco_runner.training.clock import TrainingClock


class Watched:
    """Totals of one run."""

    def __init__(self) -> None:
        self.sent = self.received = self.larger = self.on_link = self.bucket_order = 0
        self.kinds: set[str] = set()
        self.at_last_pause: dict[str, Any] = {}
        self._one_adds = threading.Lock()
        """An exchange beside training adds from a thread of its own, and `+=` of two threads may lose one."""

    def add(self, kind: str, sent: int, received: int) -> None:
        with self._one_adds:
            self.sent += sent
            self.received += received
            self.larger += max(sent, received)
            self.kinds.add(kind)

    def add_on_link(self, num_bytes: int) -> None:
        with self._one_adds:
            self.on_link += num_bytes


class Watch(TorchDispatchMode):
    """Sees every operator of its thread, those of C++ too."""

    def __init__(self, into: Watched, is_on: bool) -> None:
        super().__init__()
        self.into, self.is_on = into, is_on

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_on and func.namespace == "c10d" and func.__name__ == "broadcast_.default":
            self.into.bucket_order += args[0][0].nbytes  # DDP's own, before its second step
        elif self.is_on and func.namespace == "c10d":
            self.into.add(*moved(func.__name__.split(".")[0], args))
        return func(*args, **(kwargs or {}))


def moved(kind: str, args: Any) -> tuple[str, int, int]:
    """Bytes that one of two ranks sends and receives: half of what is summed, twice; all that is not its own."""
    if kind == "allreduce_":
        (tensor,) = args[0]
        return kind, tensor.nbytes, tensor.nbytes
    if kind == "_allgather_base_":
        return kind, args[1].nbytes, args[0].nbytes // 2
    if kind == "_reduce_scatter_base_":
        return kind, args[1].nbytes // 2, args[0].nbytes
    if kind == "alltoall_base_":
        out, sent, _, out_sizes, sent_sizes = args[:5]
        if not sent_sizes:
            return kind, sent.nbytes // 2, out.nbytes // 2
        other = 1 - RANK
        return kind, sent_sizes[other] * sent.element_size(), out_sizes[other] * out.element_size()
    if kind == "barrier":  # all ranks end a run together
        return kind, 0, 0
    raise AssertionError(f"{kind} was not expected while training")


def watch_run(folder: RunFolder, execution: ExecutionConfig) -> int:
    """Trains it; everything that is patched is put back."""
    watched = Watched()
    watch = Watch(watched, is_on=False)
    start, paused, reserve, average = (
        TrainingClock.start,
        TrainingClock.paused,
        EmulatedLink.reserve,
        Fragment.average_beside_training,
    )

    def starting(self: TrainingClock) -> None:
        if not watched.at_last_pause:
            watched.on_link = 0  # what was exchanged to build the run
        watch.is_on = True
        start(self)

    @contextlib.contextmanager
    def pausing(self: TrainingClock) -> Iterator[None]:
        watch.is_on = False
        watched.at_last_pause = {
            "sent": watched.sent,
            "received": watched.received,
            "larger": watched.larger,
            "on_link": watched.on_link,
            "bucket_order": watched.bucket_order,
            "kinds": sorted(watched.kinds),
        }
        with paused(self):
            yield

    def reserving(self: EmulatedLink, num_bytes: int, rounds: int = 1) -> float:
        watched.add_on_link(num_bytes)
        return reserve(self, num_bytes, rounds)

    def averaging(self: Fragment, deltas: Any, ready: Any) -> Any:
        with Watch(watched, is_on=True):  # a thread of its own
            return average(self, deltas, ready)

    TrainingClock.start, TrainingClock.paused = starting, pausing  # type: ignore[method-assign, assignment]
    EmulatedLink.reserve, Fragment.average_beside_training = reserving, averaging  # type: ignore[method-assign]
    try:
        with watch:
            code = run_job(folder, execution)
    finally:
        TrainingClock.start, TrainingClock.paused = start, paused  # type: ignore[method-assign]
        EmulatedLink.reserve, Fragment.average_beside_training = reserve, average  # type: ignore[method-assign]
    (folder.path / f"watched-{RANK}.json").write_text(json.dumps(watched.at_last_pause))
    return code


if __name__ == "__main__":
    RANK = int(sys.argv[1])
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[2]).read_text()):
        if code := watch_run(RunFolder(job["folder"]), ExecutionConfig(**job["execution"])):
            sys.exit(code)
