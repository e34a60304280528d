"""The controller killed at every step, on a cluster that lives on: nothing is lost, nothing runs twice."""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killed_controllers import Killed
from lasting_cluster import World, all_done, begin, play
from state_values import values_of

from muloco_runner.config import ConfigError
from muloco_runner.record import RunFolder, RunStatus
from sweeps.controller import Tick
from sweeps.engine.cluster import (
    JobEnd,
)
from sweeps.engine.policy import RULES, Cause
from sweeps.store.folder import SweepFolder
from sweeps.store.ledger import Ledger


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


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


def test_a_refusal_for_now_defers_and_one_for_good_holds(world: World) -> None:
    world.answers = itertools.chain(["defer", "defer", "wrong"], itertools.repeat("yes"))
    state = play(world)
    held = [run for run in state.runs.values() if run.held is not None]
    assert len(held) == 1
    assert "Invalid qos specification" in (held[0].held or "")
    assert state.counts["done"] == len(state.runs) - 1


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
