"""Sweeps on file systems without space: the cause says so, runs wait for room, and nothing is lost."""

import dataclasses
import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from sample_sweeps import controller_of, fill, rules_without_backoff, words
from state_values import values_of

from sweeps.__main__ import main
from sweeps.cli import controller_job
from sweeps.cli.explain import why
from sweeps.controller import Controller, Tick
from sweeps.engine import policy
from sweeps.engine.cluster import JobEnd, JobObservation, JobState
from sweeps.engine.outcome import Outcome
from sweeps.engine.policy import Cause
from sweeps.node.disk_space import may_mean_disk_full, words_for
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import Lease, read_holder


def test_runs_wait_for_disk_space_and_are_done_once_there_is_some(
    root: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = dataclasses.replace(policy.RULES[Cause.DISK_FULL], backoff_seconds=1.0)
    monkeypatch.setitem(policy.RULES, Cause.DISK_FULL, rule)
    (root / "runs").symlink_to(small_disk)
    fill(small_disk / "filler")
    said: list[str] = []

    def on_tick(tick: Tick) -> None:
        run = tick.state.runs["full"]
        if run.is_waiting and run.not_before:
            said.append(why(run, tick.state, {}, run.not_before - 0.1, True))
        if len(run.attempts) == 2:
            (small_disk / "filler").unlink(missing_ok=True)

    state = controller_of(root, {"full": {}}).run(on_tick)
    assert words(state) == {"full": "done"}
    causes = [attempt.cause for attempt in state.runs["full"].attempts]
    assert causes == [Cause.DISK_FULL] * (len(causes) - 1) + [Cause.FINISHED]
    place = f"its folder is in {small_disk}"
    assert set(said) == {f"waits for disk space ({place}): tried again after pauses of up to an hour"}
    detail = state.runs["full"].attempts[0].detail
    assert detail.startswith(f"{place}, where 0 GB are free: exit code 1; No space left on device: ")


def test_a_controller_on_a_full_disk_waits_and_loses_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.engine.policy.RULES", rules_without_backoff())
    said: list[str] = []
    controller = controller_of(small_disk, {f"w{n}": {"seconds": 0.3} for n in range(6)})

    def on_tick(tick: Tick) -> None:
        if tick.state.counts["done"] and not said:
            fill(small_disk / "filler")
        said.extend([tick.waits_for] if tick.waits_for else [])
        if len(said) == 20:
            (small_disk / "filler").unlink(missing_ok=True)

    state = controller.run(on_tick)
    assert set(words(state).values()) == {"done"}
    assert all("waits for disk space for the sweep's own files (No space left on device: " in one for one in said)
    assert said
    replay = SweepFolder(small_disk, "sample").read_state(controller.definition)
    assert replay.damage == []
    assert values_of(replay.state) == values_of(state)


def test_a_controller_that_begins_on_a_full_disk_waits(small_disk: Path) -> None:
    controller = controller_of(small_disk, {"w": {}})
    fill(small_disk / "filler")
    said: list[str] = []

    def on_tick(tick: Tick) -> None:
        said.extend([tick.waits_for] if tick.waits_for else [])
        if len(said) == 3:
            (small_disk / "filler").unlink(missing_ok=True)

    assert words(controller.run(on_tick)) == {"w": "done"}
    assert len(said) >= 3
    for one in said:
        assert one.startswith("waits for disk space for the sweep's own files (No space left on device: ")
        assert f", in {small_disk}, where 0 GB are free)" in one


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["_find_finished", "_apply_commands", "cluster.start", "submission.check"])
def test_each_first_step_waits_for_space(root: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    controller = controller_of(root, {"w": {}})
    owner: Any = controller
    *path, name = step.split(".")
    for part in path:
        owner = getattr(owner, part)

    def step_on_a_full_disk() -> None:
        raise OSError(code, os.strerror(code), str(root / "some" / "file"))

    monkeypatch.setattr(owner, name, step_on_a_full_disk)
    said: list[str] = []

    def stop(tick: Tick) -> None:
        said.append(tick.waits_for)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        controller.run(stop)
    assert len(set(said)) == 1
    assert said[0].startswith(f"waits for disk space for the sweep's own files ({os.strerror(code)}: {root}/some/file")


def test_who_leaves_a_full_disk_says_so_and_frees_its_lease(small_disk: Path) -> None:
    controller = controller_of(small_disk, {"w": {}})
    controller.cluster.start()
    fill(small_disk / "filler")

    def stop(tick: Tick) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        controller.run(stop)
    # Whoever looks is answered on a full disk too.
    holder = read_holder(controller.folder.lease_dir)
    assert holder is None or not holder.is_alive
    with pytest.raises(OSError, match="No space left on device") as caught:
        Lease(controller.folder.lease_dir)
    assert words_for(caught.value).endswith(f", in {small_disk}, where 0 GB are free")


@pytest.fixture
def controller(root: Path, small_disk: Path) -> Controller:
    """Of one run, whose folder is on a small disk and whose first attempt is submitted."""
    (root / "runs").symlink_to(small_disk)
    found = controller_of(root, {"w": {}})
    found._begin()
    return found


def cause_of_end(controller: Controller, end: JobEnd, exit_code: int | None = None, **left: Any) -> tuple[Cause, str]:
    job = next(iter(controller.state.jobs.values()))
    seen = JobObservation(job.tag, "1", JobState.ENDED, end=end, exit_code=exit_code)
    outcome = Outcome(finished=False, **left)
    controller.cluster.outcome = lambda attempt: outcome  # type: ignore[method-assign]
    found = controller._attempt_end(job, job.request.attempts[0], seen)
    return found.cause, found.detail


WORDLESS = {
    "killed": (JobEnd.EXITED, 137),
    "exit code alone": (JobEnd.EXITED, 1),
    "nothing at all": (JobEnd.EXITED, None),
    "its slot died": (JobEnd.LOST, None),
    "setup": (JobEnd.EXITED, 79),
    "out of time": (JobEnd.TIMEOUT, None),
}


@pytest.mark.parametrize("how", WORDLESS)
def test_an_end_without_words_on_a_full_disk_is_a_full_disk(controller: Controller, small_disk: Path, how: str) -> None:
    room = cause_of_end(controller, *WORDLESS[how])[0]
    assert room is not Cause.DISK_FULL
    # Room for a few words, none for work.
    fill(small_disk / "filler")
    os.truncate(small_disk / "filler", os.path.getsize(small_disk / "filler") - 64 * 1024)
    cause, detail = cause_of_end(controller, *WORDLESS[how])
    assert cause is Cause.DISK_FULL
    assert f"its folder is in {small_disk}, where " in detail
    assert "No space left on device" in detail


def test_words_on_a_full_disk_decide_where_they_are_clear(controller: Controller, small_disk: Path) -> None:
    fill(small_disk / "filler")
    for said, expected in {
        "RuntimeError: PytorchStreamWriter failed writing file data/0": Cause.DISK_FULL,
        "OSError: 262144 requested and 4096 written": Cause.DISK_FULL,
        "ZeroDivisionError: division by zero": Cause.CRASH,
    }.items():
        assert cause_of_end(controller, JobEnd.EXITED, 1, message=said)[0] is expected, said
    assert may_mean_disk_full("")


def test_a_stop_without_a_checkpoint_for_want_of_space_waits(controller: Controller) -> None:
    said = "the checkpoint of step 9 was not written ([Errno 28] No space left on device): there is none yet"
    assert cause_of_end(controller, JobEnd.EXITED, 75, message=said)[0] is Cause.DISK_FULL
    assert cause_of_end(controller, JobEnd.EXITED, 75, message=said, checkpoint_step=5)[0] is Cause.WANTS_MORE_TIME


def test_a_controller_job_waits_for_its_first_files(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, full = (
        controller_of(root, {"w": {}}),
        [OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(root / "f"))] * 2,
    )

    def without_space(*arguments: Any) -> Controller:
        if full:
            raise full[-1]
        return found

    def make_room(seconds: float) -> None:
        full.pop()

    monkeypatch.setattr(controller_job, "Controller", without_space)
    monkeypatch.setattr(controller_job, "_submit", without_space)
    monkeypatch.setattr(controller_job, "queued", lambda *arguments: [])
    monkeypatch.setattr(controller_job.time, "sleep", make_room)
    succession = controller_job._Succession(found.folder, found.config, "17")
    assert controller_job._when_free(found.folder, found.config, succession) is found
    assert succession.successor is found
    no_successor, waits = capsys.readouterr().out.splitlines()
    assert no_successor.startswith(
        f"no successor yet: no disk space for its script (Disk quota exceeded: {root}/f, in "
    )
    assert waits.startswith(f"waits for disk space for the sweep's own files (Disk quota exceeded: {root}/f, in ")


def test_a_command_that_finds_no_space_names_the_file_system(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    controller = controller_of(small_disk, {"w": {}})
    controller.lease.release()
    fill(small_disk / "filler")
    for command, code in ((["status"], 0), (["pause"], 1), (["hold", "--all"], 1)):
        monkeypatch.setattr(sys, "argv", ["muloco-sweep", *command, str(small_disk)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert ended.value.code == code, told
        if code:
            assert told.err.startswith("muloco-sweep: disk full: No space left on device: ")
            assert told.err.endswith(
                f", in {small_disk}, where 0 GB are free; fix it, then run the same command to continue\n"
            )
