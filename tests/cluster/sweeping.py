"""Sweeps of light work on the emulated SLURM, and what must hold after each, whatever has happened."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from emulated_slurm import PATIENCE_SECONDS, EmulatedSlurm, queue_and_nodes, wait_for

import sweeps
from sweeps.clusters.slurm.parse import SACCT_FIELDS, parse_sacct
from sweeps.clusters.slurm.slurm_cluster import SlurmCluster
from sweeps.controller import Controller, Tick
from sweeps.engine.policy import Cause
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Need, Work
from sweeps.store.folder import Definition, SweepFolder
from sweeps.training.adapter import TRAINING

LONGEST_SWEEP_SECONDS = 1800
"""A sweep that what a test waits for never ends gives up then: far later than any ends, however busy the machine is."""
ONE_FORKS = threading.Lock()
"""A driver that is forked while another thread starts a command would keep that command's output open: whoever reads it
would wait for the driver's end."""
PACKAGE = str(Path(sweeps.__file__).parent)
ONE_NODE = Need(1, 8, 8, wall_minutes=60, expected_minutes=0.1)
GPU = {"name": "gpu", "partition": "gpu", "account": "lab", "gpus_per_node": 8, "cpus_per_node": 8}


class SampleSweep:
    """One sweep in `root`: its runs by name, each with the arguments of `cluster_work.count`."""

    def __init__(
        self,
        root: Path,
        plans: Mapping[str, Mapping[str, Any]],
        *allocations: Mapping[str, Any],
        needs: Mapping[str, Need] | None = None,
        **cluster: Any,
    ) -> None:
        self.root, self.folder = root, SweepFolder(root, "sample")
        works = [
            Work(
                name,
                str(root / "runs" / name),
                "cluster_work:count",
                dict(plan),
                (needs or {}).get(name, ONE_NODE),
                adapter=TRAINING,
            )
            for name, plan in plans.items()
        ]
        values = {
            "kind": "slurm",
            "tick_seconds": 0.3,
            "submit_confirm_timeout_seconds": 5.0,
            "allocations": list(allocations or [GPU]),
        }
        self.definition = Definition("sample", "test", {**values, **cluster}, works)

    def controller(self) -> Controller:
        self.folder.write_definition(self.definition)
        return Controller(self.folder, self.definition, SlurmCluster)

    def run(self, on_tick: Callable[[Tick], None] = lambda tick: None) -> SweepState:
        end = time.monotonic() + LONGEST_SWEEP_SECONDS

        def on_tick_in_time(tick: Tick) -> None:
            on_tick(tick)
            if time.monotonic() > end:
                raise TimeoutError(f"{dict(tick.state.counts)} after {LONGEST_SWEEP_SECONDS} s\n{queue_and_nodes()}")

        return self.controller().run(on_tick_in_time)

    def start(self, before: Callable[[], None] = lambda: None) -> multiprocessing.process.BaseProcess:
        """A driver in a process of its own, which may be killed."""

        def drive() -> None:
            before()
            self.run()
            os._exit(0)

        process = multiprocessing.get_context("fork").Process(target=drive)
        with ONE_FORKS:
            process.start()
        return process

    def starts(self, name: str) -> list[dict[str, Any]]:
        """What each start of the run saw."""
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.root / "runs" / name / "started").read_text().splitlines()]
        return []

    def wait_for_start(self, name: str, count: int = 1) -> str:
        """The node where the run's start of that number is."""
        wait_for(lambda: len(self.starts(name)) >= count, f"start {count} of {name}")
        return str(self.starts(name)[count - 1]["node"])

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = self.folder.ledger_file.read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]


def causes(state: SweepState, name: str) -> list[Cause | None]:
    return [attempt.cause for attempt in state.runs[name].attempts]


def standings(state: SweepState) -> dict[str, str]:
    return {name: run.status for name, run in state.runs.items()}


def check(sweep: SampleSweep, state: SweepState, slurm: EmulatedSlurm) -> None:
    """No run was at work twice at once, none has started again after its result, and accounting agrees with us on
    which jobs have succeeded."""
    assert not list(sweep.root.glob("runs/*/twice"))
    ours: dict[str, list[Cause | None]] = {}
    for name, run in state.runs.items():
        assert run.done == (sweep.root / "runs" / name / "result.json").exists(), name
        for attempt in run.attempts:
            ours.setdefault(attempt.tag, []).append(attempt.cause)
        assert Cause.FINISHED not in [attempt.cause for attempt in run.attempts[:-1]], name
        assert len(sweep.starts(name)) <= len(run.attempts), name
    told: dict[str, str] = {}

    def all_told() -> bool:
        text = slurm.run("sacct", "-nPXD", "-S", "now-1hour", "-o", SACCT_FIELDS)
        told.update({job.name: f"{job.state} {job.exit_code}" for job in parse_sacct(text) if job.is_finished})
        return set(ours) <= set(told)

    wait_for(all_told, f"word of {sorted(ours)} from accounting")
    for tag, found in ours.items():
        succeeded = all(cause is Cause.FINISHED for cause in found)
        # A node may go in the moment between a result and its job's end.
        assert (told[tag] in ("COMPLETED 0", "NODE_FAIL 0")) if succeeded else (told[tag] != "COMPLETED 0"), (tag, told)


@contextlib.contextmanager
def sampled_nodes(slurm: EmulatedSlurm, every: float = 1.0) -> Iterator[list[int]]:
    """Nodes that all running jobs of ours hold together, looked up in the queue again and again meanwhile."""
    samples: list[int] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(every):
            with contextlib.suppress(subprocess.SubprocessError), ONE_FORKS:
                samples.append(sum(map(int, slurm.run("squeue", "-h", "--me", "-t", "R,CG", "-o", "%D").split())))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def put_before(command: str, script: str, folder: Path) -> None:
    """Puts a shell script before one of SLURM's commands on this process's PATH; $REAL is the command itself."""
    real = shutil.which(command)
    folder.mkdir(exist_ok=True)
    (folder / command).write_text(f"#!/bin/bash\nREAL={real}\nHERE={folder}\n{script}\n")
    (folder / command).chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def kill_drivers(sweep: SampleSweep, deaths: Sequence[Callable[[], None]], later: Sequence[str]) -> None:
    """Starts one driver after the other, each of which dies in its own way.

    Each finds another of the runs `later` to submit; and the sweep must have a run that does not end meanwhile. So none
    of them sees the sweep's end, however fast its jobs are and however slow SLURM is.
    """
    sweep.folder.send("held", runs=list(later), why="for a later driver")
    for death, name in zip(deaths, later, strict=False):
        sweep.folder.send("released", runs=[name])
        driver = sweep.start(death)
        driver.join(PATIENCE_SECONDS)
        assert driver.exitcode == -signal.SIGKILL, f"the driver that found {name} ended with {driver.exitcode}"
    sweep.folder.send("released", runs=list(later[len(deaths) :]))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_line(number: int) -> None:
    """`kill -9` before the line of that number, counted over all lines of the package that this process runs."""
    left = [number]

    def on_line(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            left[0] -= 1
            if left[0] <= 0:
                die()
        return on_line

    sys.settrace(lambda frame, event, argument: on_line if frame.f_code.co_filename.startswith(PACKAGE) else None)


def die_around_sbatch(after: bool) -> None:
    """`kill -9` once `sbatch` has accepted a job and nobody has written so down; or while it is asking."""
    submit = SlurmCluster.submit

    def submit_and_die(self: SlurmCluster, request: Any, predecessors: Any = ()) -> str:
        if not after:
            # sbatch goes on without its parent.
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            signal.signal(signal.SIGALRM, lambda number, frame: die())
        job_id = submit(self, request, predecessors)
        die()
        return job_id

    SlurmCluster.submit = submit_and_die  # type: ignore[method-assign]
