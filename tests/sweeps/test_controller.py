"""The controller killed at every step, on a cluster that lives on: nothing is lost, nothing runs twice."""

import contextlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from state_values import values_of

from muloco_runner.config import ConfigError
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
from sweeps.engine.policy import RULES, Cause
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Attempt, Need, Work
from sweeps.node.attempt_files import is_finished, read_outcome
from sweeps.progress_lines import Lines
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.ledger import Ledger
from sweeps.training.adapter import TRAINING

QUOTA = 3
CLUSTER = {
    "kind": "slurm",
    "tick_seconds": 30.0,
    "allocations": [{"name": "a", "gpus_per_node": 8, "whole_nodes": True, "quota": {"nodes": QUOTA}}],
}


class Killed(BaseException):
    """kill -9, as the code under test sees it: nothing of it runs any more."""


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


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def begin(world: World) -> Controller:
    """A controller on a host of its own: the one before it is dead."""
    folder = SweepFolder(world.root, "s")
    definition = Definition("s", "c", {**CLUSTER, **world.settings}, works(world.root))
    folder.write_definition(definition)
    for lease in folder.lease_dir.glob("[0-9]*"):
        lease.write_text(json.dumps({"host": "", "pid": 0, "started_at": 0.0}))

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


def steps_of_a_sweep(root: Path) -> Iterator[World]:
    """Worlds in which the controller dies at the first step, the second, and so on to the last."""
    for kill_at in itertools.count(1):
        world = World(root / str(kill_at))
        world.kill_at = kill_at
        yield world
        if world.kill_at == 0 and world.steps < kill_at:
            return


def test_killed_at_any_step_nothing_is_lost_and_nothing_runs_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each line of the ledger has a step before it, one amid it, which leaves it torn, and one after it.
    whole = Ledger.append
    current: list[World] = []

    def append(self: Ledger, event: str, **values: Any) -> Any:
        current[0].step()
        try:
            current[0].step()
        except Killed:
            with open(self.path, "a") as file:
                file.write('{"crc":1234,"token":1,"ev')
            raise
        line = whole(self, event, **values)
        current[0].step()
        return line

    monkeypatch.setattr(Ledger, "append", append)
    kills = 0
    for world in steps_of_a_sweep(tmp_path):
        current[:] = [world]
        try:
            play(world)
        except Killed:
            kills += 1
        killed_at, world.kill_at = world.kill_at, 0
        assert all_done(play(world)), killed_at
        assert set(world.starts.values()) == {1}, killed_at
    assert kills > 60


@pytest.mark.parametrize("answer", ["accepted but unheard", "lost"])
def test_a_lost_answer_is_looked_after_before_submitting_again(world: World, answer: str) -> None:
    world.answers = itertools.chain([answer, "yes", answer], itertools.repeat("yes"))
    assert all_done(play(world))
    assert set(world.starts.values()) == {1}


def test_a_refusal_for_now_defers_and_one_for_good_holds(world: World) -> None:
    world.answers = itertools.chain(["defer", "defer", "wrong"], itertools.repeat("yes"))
    state = play(world)
    held = [run for run in state.runs.values() if run.held is not None]
    assert len(held) == 1
    assert "Invalid qos specification" in (held[0].held or "")
    assert state.counts["done"] == len(state.runs) - 1


def test_a_scheduler_that_does_not_answer_is_not_an_empty_one(world: World) -> None:
    ticks = itertools.count()

    def unreachable_for_a_while(tick: Tick) -> None:
        world.reachable = not 2 <= next(ticks) <= 20

    assert all_done(play(world, unreachable_for_a_while))
    assert set(world.starts.values()) == {1}


def test_a_silent_scheduler_is_reported_and_sent_nothing(world: World) -> None:
    said: list[str] = []
    world.reachable = False
    controller = begin(world)
    Lines(said.append, controller.folder.cluster_dir)(controller.tick())
    assert said[-1].endswith("5 waiting; the scheduler does not answer: asking again")
    assert not world.jobs
    world.reachable = True
    assert controller.tick().queue_read
    assert world.jobs


def test_jobs_that_vanish_run_again(world: World) -> None:
    ticks = itertools.count()

    def vanish(tick: Tick) -> None:
        if next(ticks) == 2:
            world.jobs.clear()
            world.ended.clear()

    state = play(world, vanish)
    assert all_done(state)
    assert max(world.starts.values()) == 2


def forget(world: World) -> None:
    world.jobs.clear()
    world.ended.clear()


def test_a_job_is_lost_only_where_its_very_number_is_unknown(world: World) -> None:
    controller = begin(world)
    controller.tick()
    in_flight = set(controller.state.jobs)
    forget(world)
    world.knows_by_number = False
    for _ in range(40):
        world.advance(30.0)
        controller.tick()
    assert set(controller.state.jobs) == in_flight
    world.knows_by_number = True
    state = play(world)
    assert all_done(state)
    assert Cause.LOST in {attempt.cause for run in state.runs.values() for attempt in run.attempts}


def test_a_job_that_nobody_lists_is_not_lost_while_its_heart_beats(world: World) -> None:
    controller = begin(world)
    controller.tick()
    (job, *_) = controller.state.jobs.values()
    folder = RunFolder(job.request.attempts[0].work.folder)
    folder.path.mkdir(parents=True)
    forget(world)
    for _ in range(12):
        folder.write_status(RunStatus("r", "running"))
        os.utime(folder.status_file, (world.now, world.now))
        world.advance(30.0)
        controller.tick()
    assert job.tag in controller.state.jobs
    for _ in range(6):
        world.advance(30.0)
        controller.tick()
    assert job.tag not in controller.state.jobs


@pytest.mark.parametrize("answer", ["yes", "accepted but unheard"])
def test_what_a_forgotten_job_has_left_on_disk_is_believed(world: World, answer: str) -> None:
    world.answers = itertools.chain([answer], itertools.repeat("yes"))
    controller = begin(world)
    controller.tick()
    (job, *_) = controller.state.jobs.values()
    world.advance(120.0)
    assert is_finished(job.request.attempts[0].work)
    forget(world)
    state = play(world)
    assert all_done(state)
    assert set(world.starts.values()) == {1}
    assert {attempt.cause for run in state.runs.values() for attempt in run.attempts} == {Cause.FINISHED}


def test_runs_beside_a_cancelled_one_start_again_uncounted(world: World) -> None:
    controller = begin(world)
    for _ in range(20):
        controller.tick()
        packs = [job for job in controller.state.jobs.values() if len(job.request.attempts) > 1]
        if packs:
            break
        world.advance(30.0)
    (pack,) = packs
    named, other = (attempt.work.name for attempt in pack.request.attempts)
    SweepFolder(world.root, "s").send("cancel", runs=[named])
    state = play(world)
    assert [attempt.cause for attempt in state.runs[named].attempts] == [Cause.CANCELLED]
    assert [attempt.cause for attempt in state.runs[other].attempts] == [Cause.CANCELLED_WITH_JOB, Cause.FINISHED]
    assert (state.counts["held"], state.counts["done"]) == (1, 4)


def test_a_run_that_has_its_result_is_not_cancelled_with_its_job(world: World) -> None:
    controller = begin(world)
    controller.tick()
    (job, *_) = controller.state.jobs.values()
    (attempt, *_) = job.request.attempts
    RunFolder(attempt.work.folder).path.mkdir(parents=True)
    RunFolder(attempt.work.folder).result_file.write_text("{}")
    SweepFolder(world.root, "s").send("cancel", runs=[attempt.work.name])
    assert all_done(play(world))
    assert not [tag for tag, end in world.ended.items() if end is JobEnd.CANCELLED]


def test_one_bug_in_several_runs_holds_the_rest_until_retry(world: World) -> None:
    world.crashes = {f"r{n}": "ValueError: shapes differ (model.py:7)" for n in range(5)}
    state = play(world)
    assert state.counts["held"] == 5
    assert sum(world.starts.values()) < 2 * 5
    words = [run.held or "" for run in state.runs.values()]
    assert any("runs crashed in the same way: ValueError: shapes differ" in why for why in words)
    world.crashes.clear()
    SweepFolder(world.root, "s").send("released", runs=list(state.runs))
    assert all_done(play(world))


def test_crashes_that_differ_hold_nobody_else(world: World) -> None:
    world.crashes = {f"r{n}": f"ValueError: {n}" for n in range(4)}
    state = play(world)
    assert {name for name, run in state.runs.items() if run.held is not None} == set(world.crashes)
    assert state.runs["r4"].done
    assert {world.starts[name] for name in world.crashes} == {2}


def test_retries_of_the_cluster_hold_from_then_on(world: World) -> None:
    world.crashes = {"r0": "ValueError: 0"}
    world.settings = {"retries": 3}
    before = play(world)
    assert world.starts["r0"] == 4
    assert before.runs["r0"].held == "crash: crashed again: correct what it says, then `retry`"
    # What was decided stays decided, whatever is set by then; a later end is decided by what is set then.
    world.settings = {"retries": 0}
    assert values_of(begin(world).state) == values_of(before)
    SweepFolder(world.root, "s").send("released", runs=["r0"])
    assert play(world).runs["r0"].held == "crash: crashed: correct what it says, then `retry`"
    assert world.starts["r0"] == 5


def test_so_many_failures_stop_the_sweep_until_retry(world: World) -> None:
    """r3 is the widest: it goes first and fills the quota."""
    world.crashes = {"r3": "ValueError: 3"}
    world.settings = {"retries": 0, "stop_after_failures": 1}
    state = play(world)
    stopped = [run.work.name for run in state.runs.values() if "stop_after_failures=1" in (run.held or "")]
    assert state.failed == {"r3"}
    assert stopped == ["r0", "r1", "r2", "r4"]
    assert world.starts == {"r3": 1}
    SweepFolder(world.root, "s").send("released", runs=stopped)
    state = play(world)
    assert [name for name, run in state.runs.items() if run.done] == stopped
    assert state.runs["r3"].held


def test_failures_of_nodes_and_preemptions_stop_no_sweep(world: World) -> None:
    world.settings = {"stop_after_failures": 1, "retries": 0, "max_timeouts": 1}
    ends = itertools.chain([JobEnd.PREEMPTED, JobEnd.NODE_FAILURE] * 2)

    def end_early(tick: Tick) -> None:
        for request in world.live()[:1]:
            with contextlib.suppress(StopIteration):
                world.ended[request.tag] = next(ends)

    assert all_done(play(world, end_early))
    assert next(ends, None) is None


def test_a_node_that_failed_a_run_is_avoided_by_the_next_attempts(world: World) -> None:
    world.crashes = {"r0": "CUDA error"}
    play(world)
    avoiding = [job for job, _ in world.jobs.values() if "n1" in job.excluded_nodes]
    assert any(attempt.work.name == "r0" and attempt.number == 2 for job in avoiding for attempt in job.attempts)


def test_a_run_that_stopped_answering_is_cancelled_and_tried_again(world: World) -> None:
    world.stuck = {"r0"}
    folder = RunFolder(world.root / "runs" / "r0")
    folder.path.mkdir(parents=True)
    folder.write_status(RunStatus("r0", "running"))
    state = play(world)
    assert all_done(state)
    assert [attempt.cause for attempt in state.runs["r0"].attempts] == [Cause.HANG, Cause.FINISHED]


def test_a_job_whose_ledger_line_is_damaged_is_taken_in_again(world: World) -> None:
    controller = begin(world)
    controller.tick()
    ledger = SweepFolder(world.root, "s").ledger_file
    damaged = ledger.read_text().replace('"intended"', '"intendee"')
    assert damaged != ledger.read_text()
    ledger.write_text(damaged)
    state = play(world)
    assert all_done(state)
    assert set(world.starts.values()) == {1}


def test_a_job_given_up_too_early_does_not_run_beside_its_heir(world: World) -> None:
    world.answers = itertools.chain(["lost"], itertools.repeat("yes"))
    controller = begin(world)
    controller.tick()
    (lost,) = controller.state.jobs.values()
    for _ in range(8):
        world.advance(30.0)
        controller.tick()
    assert lost.tag not in controller.state.jobs
    assert controller.state.jobs, "its run was sent anew"
    world.jobs[lost.tag] = (lost.request, world.now)
    controller.tick()
    assert world.ended[lost.tag] is JobEnd.CANCELLED


def test_an_end_that_was_not_heard_is_asked_for_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(World, "cancel", lambda self, jobs: asked.append([job.tag for job in jobs]))
    controller = begin(world)
    controller.tick()
    SweepFolder(world.root, "s").send("cancel", runs=["r3"])
    for _ in range(2):
        controller.tick()
    assert len(asked) == 1
    # Its successor knows of it from the ledger alone.
    begin(world).tick()
    assert asked == [asked[0]] * 2


def test_a_persons_cancel_and_the_sweeps_own_are_told_apart(world: World) -> None:
    folder = SweepFolder(world.root, "s")
    controller = begin(world)
    folder.send("held", runs=["r3"], why="it would fill the quota")
    controller.tick()
    ours, theirs = list(controller.state.jobs.values())[:2]
    mine = ours.request.attempts[0].work.name
    folder.send("cancel", runs=[mine])
    for job in (ours, theirs):  # both save themselves
        for attempt in job.request.attempts:
            attempt.folder.mkdir(parents=True)
            left = {"exit_code": 75, "host": "n1", "started_at": world.now, "ended_at": world.now + 1}
            (attempt.folder / "ending.json").write_text(json.dumps({**left, "stopped_early": True}))
    world.ended[theirs.tag] = JobEnd.CANCELLED
    for _ in range(2):
        controller.tick()
    causes = {
        job.tag: {controller.state.runs[attempt.work.name].attempts[-1].cause for attempt in job.request.attempts}
        for job in (ours, theirs)
    }
    assert causes == {ours.tag: {Cause.CANCELLED}, theirs.tag: {Cause.CANCELLED_OUTSIDE}}
    assert {run.held for run in controller.state.runs.values() if run.attempts and run.attempts[-1].cause} == {
        f"{cause.value}: {RULES[cause].advice}" for cause in (Cause.CANCELLED, Cause.CANCELLED_OUTSIDE)
    }
    # Both are over for now: no tick sends either again.
    world.advance(3600.0)
    controller.tick()
    assert all(controller.state.runs[a.work.name].held for job in (ours, theirs) for a in job.request.attempts)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_jobs_of_somebody_else_are_not_taken_over(world: World) -> None:
    controller = begin(world)
    controller.tick()
    (tag, *_) = controller.state.jobs
    os.chown(controller.folder.path / "jobs" / f"{tag}.json", 65534, 65534)
    for _ in range(2):
        # The lease was given back.
        with pytest.raises(ConfigError, match="ask nobody to launch it"):
            begin(world)
    os.chown(controller.folder.path / "jobs" / f"{tag}.json", 0, 0)
    assert all_done(play(world))
    assert set(world.starts.values()) == {1}
