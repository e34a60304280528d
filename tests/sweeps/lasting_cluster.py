"""A cluster that lives on when its controller is killed, on disk and in memory, and sweeps played on it."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from killed_controllers import Killed, take_for_dead

from muloco_runner.record import RunFolder, RunStatus
from sweeps.controller import Controller, Tick
from sweeps.engine.cluster import (
    JobEnd,
    JobIdentity,
    JobObservation,
    JobRequest,
    JobState,
    Limits,
    Observation,
    RefusalKind,
    Refused,
)
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.outcome import Outcome
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Attempt, Need, Work
from sweeps.node.attempt_files import is_finished, read_outcome
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.training.adapter import TRAINING

QUOTA = 3
CLUSTER = {
    "kind": "slurm",
    "tick_seconds": 30.0,
    "allocations": [{"name": "a", "gpus_per_node": 8, "whole_nodes": True, "quota": {"nodes": QUOTA}}],
}


class World:
    """A scheduler with its jobs and clock. It outlives controllers."""

    outlives_controller = True
    queues_successors = False

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, 1.8e9
        self.jobs: dict[str, tuple[JobRequest, float]] = {}
        """By tag: the request, and when it was accepted."""
        self.ended: dict[str, JobEnd] = {}
        self.starts: Counter[str] = Counter()
        self.answers: Iterator[str] = itertools.repeat("yes")
        self.reachable = True
        self.asked: set[str] = set()
        self.knows_by_number = True
        """Whether it answers when it is asked for exactly the jobs that it does not list."""
        self.crashes: dict[str, str] = {}
        """What a run says, by name, each time it crashes."""
        self.settings: dict[str, Any] = {}
        """Of the cluster's file, besides `CLUSTER`."""
        self.stuck: set[str] = set()
        """Runs whose first attempt writes no heartbeat after its start and never ends."""
        self.steps, self.kill_at = 0, 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.kill_at:
            raise Killed

    def live(self) -> list[JobRequest]:
        return [request for tag, (request, _) in self.jobs.items() if tag not in self.ended]

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for tag, (request, accepted_at) in self.jobs.items():
            is_stuck = any(attempt.work.name in self.stuck and attempt.number == 1 for attempt in request.attempts)
            minutes = request.attempts[0].work.need.expected_minutes
            if tag not in self.ended and not is_stuck and self.now - accepted_at >= 60 * minutes:
                self.ended[tag] = JobEnd.EXITED
                for attempt in request.attempts:
                    self._finish(attempt)

    def _finish(self, attempt: Attempt) -> None:
        folder = RunFolder(attempt.work.folder)
        folder.path.mkdir(parents=True, exist_ok=True)
        if attempt.work.name in self.crashes:
            said = self.crashes[attempt.work.name]
            folder.write_status(RunStatus(attempt.work.name, "failed", attempt=attempt.number, exit_cause=said))
            attempt.folder.mkdir(parents=True, exist_ok=True)
            ending = {"exit_code": 1, "host": "n1", "started_at": self.now - 1, "ended_at": self.now}
            (attempt.folder / "ending.json").write_text(json.dumps(ending))
        else:
            folder.result_file.write_text("{}")

    # The cluster

    def check(self) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def submission_scopes(self) -> Sequence[str]:
        return ()

    def submit(self, request: JobRequest, after: Sequence[str] = ()) -> str:
        self.step()
        answer = next(self.answers)
        if answer == "defer":
            raise Refused(RefusalKind.DEFER, "QOSMaxSubmitJobPerUserLimit")
        if answer == "wrong":
            raise Refused(RefusalKind.FATAL, "Invalid qos specification")
        if answer != "lost":
            assert request.tag not in self.jobs, "one tag, two jobs"
            busy = {attempt.work.name for job in self.live() for attempt in job.attempts}
            for attempt in request.attempts:
                assert attempt.work.name not in busy, "run twice at once"
                assert not is_finished(attempt.work), "a finished run runs again"
                self.starts[attempt.work.name] += 1
            self.jobs[request.tag] = (request, self.now)
            assert sum(job.nodes for job in self.live()) <= QUOTA
        if answer in ("lost", "accepted but unheard"):
            raise Refused(RefusalKind.MAY_EXIST, "Socket timed out on send/recv operation")
        self.step()
        return "1"

    def observe(self, jobs: Sequence[JobIdentity]) -> Observation:
        self.step()
        self.asked = {job.tag for job in jobs}
        if not self.reachable:
            return Observation({}, complete=False, queue_read=False)
        seen = {}
        for tag in self.asked & set(self.jobs):
            _, at = self.jobs[tag]
            end = self.ended.get(tag)
            state = JobState.RUNNING if end is None else JobState.ENDED
            code = 0 if end is JobEnd.EXITED else None
            seen[tag] = JobObservation(tag, "1", state, ("n1",), end=end, exit_code=code, started_at=at)
        return Observation(seen)

    def outcome(self, attempt: Attempt) -> Outcome:
        return read_outcome(attempt)

    def write_error(self, attempt: Attempt) -> str:
        return ""

    def absent(self, jobs: Sequence[JobIdentity]) -> Collection[str]:
        self.step()
        return {job.tag for job in jobs if job.tag not in self.jobs and self.knows_by_number}

    def cancel(self, jobs: Sequence[JobIdentity]) -> None:
        self.step()
        for job in jobs:
            if job.tag in self.jobs:
                self.ended.setdefault(job.tag, JobEnd.CANCELLED)

    def cancel_pending(self, jobs: Sequence[JobIdentity]) -> None:
        """Jobs start as soon as they are accepted."""

    def orphaned_jobs(self, prefix: str) -> Sequence[JobIdentity]:
        return [JobIdentity(job.tag, 0.0, "1") for job in self.live() if job.tag not in self.asked and self.reachable]

    def limits(self, is_own: Callable[[str], bool]) -> Limits:
        return Limits()


def works(root: Path) -> list[Work]:
    shapes = [(1, 8, 2), (1, 2, 1), (1, 2, 1), (3, 8, 1), (2, 8, 1)]
    return [
        Work(f"r{n}", str(root / "runs" / f"r{n}"), "m:f", need=Need(nodes, gpus, 1, 0.0, minutes), adapter=TRAINING)
        for n, (nodes, gpus, minutes) in enumerate(shapes)
    ]


def begin(world: World) -> Controller:
    """A controller on a host of its own: the one before it is dead."""
    folder = SweepFolder(world.root, "s")
    definition = Definition("s", "c", {**CLUSTER, **world.settings}, works(world.root))
    folder.write_definition(definition)
    take_for_dead(folder)

    def make(config: ClusterConfig, place: Path) -> World:
        return world

    return Controller(folder, definition, make, clock=lambda: world.now)


def play(world: World, on_tick: Callable[[Tick], None] = lambda tick: None) -> SweepState:
    controller = begin(world)
    for _ in range(400):
        on_tick(controller.tick())
        if controller.state.is_over:
            return controller.state
        world.advance(30.0)
    raise AssertionError(f"no end: {controller.state.counts}")


def all_done(state: SweepState) -> bool:
    return state.counts["done"] == len(state.runs)
