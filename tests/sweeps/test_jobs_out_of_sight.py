"""Jobs that the scheduler does not list, and answers that never came: looked for, believed and given up."""

import itertools
import os
from pathlib import Path

import pytest
from lasting_cluster import World, all_done, begin, play

from muloco_runner.record import RunFolder, RunStatus
from sweeps.controller import Tick
from sweeps.engine.cluster import (
    JobEnd,
    JobObservation,
    JobState,
)
from sweeps.engine.policy import Cause
from sweeps.node.attempt_files import is_finished
from sweeps.progress_lines import Lines
from sweeps.store.folder import SweepFolder


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("answer", ["accepted but unheard", "lost"])
def test_a_lost_answer_is_looked_after_before_submitting_again(world: World, answer: str) -> None:
    world.answers = itertools.chain([answer, "yes", answer], itertools.repeat("yes"))
    assert all_done(play(world))
    assert set(world.starts.values()) == {1}


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


def test_a_withdrawn_job_that_vanished_may_have_run(world: World) -> None:
    controller = begin(world)
    controller.tick()
    (first, *_) = controller.state.jobs.values()
    forget(world)
    controller._record("withdrawing", tag=first.tag)
    for _ in range(12):
        world.advance(30.0)
        controller.tick()
    assert first.tag not in controller.state.jobs
    attempt, *_ = controller.state.runs[first.request.attempts[0].work.name].attempts
    assert attempt.cause is Cause.LOST
    assert sum(controller.state.spent_gpu_hours.values()) > 0


def test_a_cancelled_run_whose_job_never_came_stays_so(world: World) -> None:
    world.answers = itertools.chain(["lost"], itertools.repeat("yes"))
    controller = begin(world)
    controller.tick()
    (job,) = controller.state.jobs.values()
    (run, *_) = [attempt.work.name for attempt in job.request.attempts]
    SweepFolder(world.root, "s").send("cancel", runs=[run])
    state = play(world)
    assert (state.runs[run].held or "").startswith("cancelled: ")
    assert run not in world.starts
    assert sum(one.hours.get("work", 0.0) for one in state.runs[run].attempts) == 0


def test_a_cancelled_run_stays_so_where_its_job_was_withdrawn(world: World) -> None:
    controller = begin(world)
    controller.tick()
    (job, *_) = controller.state.jobs.values()
    (run, *_) = [attempt.work.name for attempt in job.request.attempts]
    controller._record("withdrawing", tag=job.tag)
    controller._cancel({"runs": [run], "command": "c"})
    controller._end(job, JobObservation(job.tag, "1", JobState.ENDED, end=JobEnd.CANCELLED), world.now)
    assert (controller.state.runs[run].held or "").startswith("cancelled: ")


def test_stopping_the_controller_overrules_no_cancel(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = begin(world)
    controller.tick()
    (job, *_) = controller.state.jobs.values()
    (run, *_) = [attempt.work.name for attempt in job.request.attempts]
    controller._cancel({"runs": [run], "command": "c"})
    monkeypatch.setattr(world, "outlives_controller", False)
    controller._stop_jobs()
    assert controller.state.runs[run].attempts[0].cause is Cause.CANCELLED


def test_a_suspended_job_does_not_hang(world: World) -> None:
    controller = begin(world)
    controller.tick()
    (job, *_) = controller.state.jobs.values()
    for attempt in job.request.attempts:
        folder = RunFolder(attempt.work.folder)
        folder.path.mkdir(parents=True)
        folder.write_status(RunStatus(attempt.work.name, "running"))
        os.utime(folder.status_file, (world.now, world.now))
    runs = JobObservation(job.tag, "1", JobState.RUNNING)
    suspended = JobObservation(job.tag, "1", JobState.RUNNING, is_suspended=True)
    hour = 3600.0
    assert not controller.signs.hangs(job, runs, world.now)
    assert not controller.signs.hangs(job, suspended, world.now + hour)
    assert not controller.signs.hangs(job, runs, world.now + hour + 1)
    assert controller.signs.hangs(job, runs, world.now + 2 * hour)
