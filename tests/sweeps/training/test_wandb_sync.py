"""Records that were kept offline are sent from the controller's host: once, in turn, and without the key in sight."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muloco_runner.record import WANDB_FAILURE
from sweeps.cli.status import status_of
from sweeps.cli.status_table import status_lines
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.policy import Cause
from sweeps.engine.run_states import AttemptState
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Work
from sweeps.training.adapter import TRAINING
from sweeps.training.wandb_sync import Syncer, send, syncer_of
from sweeps.training.wandb_unsent import left_behind, read_unsent

KEY = "0123456789abcdef0123456789abcdef01234567"
# Stands for `python -m wandb`: notes its words, and fails while a file says so.
STAND_IN = """
import os, sys, time
from pathlib import Path
here = Path(__file__).parent
with open(here / "calls", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
time.sleep(float((here / "seconds").read_text()) if (here / "seconds").exists() else 0)
if (here / "broken").exists():
    sys.exit(f"wandb: ERROR refused: {os.environ['WANDB_API_KEY']}")
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "modules" / "wandb"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(STAND_IN)
    (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return package


def calls(wandb: Path) -> list[str]:
    return (wandb / "calls").read_text().splitlines() if (wandb / "calls").exists() else []


def leave(run: Path, attempt: int, text: str = "records") -> Path:
    """An attempt's folder, with what wandb writes offline."""
    folder = run / "attempts" / str(attempt)
    place = folder / "wandb" / f"offline-run-2026_00000{attempt}-{run.name}"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"run-{run.name}.wandb").write_text(text)
    return folder


def state_of(run: Path, *causes: Cause | None) -> SweepState:
    state = SweepState.of([Work(run.name, str(run), "m:f", adapter=TRAINING)], "tag-")
    known = state.runs[run.name]
    state.runs.changes(known)
    known.attempts.extend(
        AttemptState(number, f"tag-{number}", "here", 0, 0.0, cause=cause) for number, cause in enumerate(causes, 1)
    )
    return state


def test_each_state_of_a_file_is_sent_once(wandb: Path, tmp_path: Path) -> None:
    attempt = leave(tmp_path / "ab", 1)
    assert send(attempt) == send(attempt) == ""
    (place,) = attempt.glob("wandb/*")
    assert calls(wandb) == [f"sync {place}"]
    leave(tmp_path / "ab", 1, "more records")
    assert send(attempt) == ""
    assert calls(wandb)[1:] == [f"sync --include-synced {place}"]


def test_only_attempts_that_have_ended_are_sent(wandb: Path, tmp_path: Path) -> None:
    run = tmp_path / "ab"
    first, second = leave(run, 1), leave(run, 2)
    said: list[str] = []
    syncer = Syncer(tmp_path / "log", said.append)
    syncer.finish(state_of(run, Cause.PREEMPTED, None))
    assert len(calls(wandb)) == 1
    assert str(first) in calls(wandb)[0]
    # Another controller takes over.
    syncer = Syncer(tmp_path / "log", said.append)
    syncer.finish(state_of(run, Cause.PREEMPTED, Cause.FINISHED))
    assert [str(folder) in call for folder, call in zip((first, second), calls(wandb), strict=True)] == [True, True]
    assert said == []


def test_a_failure_is_one_line_without_the_key_and_tried_again(wandb: Path, tmp_path: Path) -> None:
    run = tmp_path / "ab"
    leave(run, 1)
    (wandb / "broken").touch()
    said: list[str] = []
    syncer, state = Syncer(tmp_path / "log", said.append), state_of(run, Cause.FINISHED)
    for _ in range(2):
        syncer.finish(state)
    assert said == [
        "Weights & Biases: records of 1 attempt wait in their folders: ab, attempt 1: wandb sync ended with 1: "
        "wandb: ERROR refused: ***; tried again later; `python -m wandb sync` must work where the controller runs"
    ]
    assert [one.to_text() for one in read_unsent(tmp_path)] == said
    # It is left alone for a while.
    assert not syncer.advance(state)
    assert len(calls(wandb)) == 2
    (wandb / "broken").unlink()
    syncer.finish(state)
    assert len(calls(wandb)) == 3
    assert read_unsent(tmp_path) == []
    left = [path for path in run.rglob("*") if path.is_file()]
    assert not any(KEY in path.read_text() for path in [*left, tmp_path / "log", wandb / "calls"])


def test_a_sender_that_outlives_its_controller_is_alone(wandb: Path, tmp_path: Path) -> None:
    attempt = leave(tmp_path / "ab", 1)
    (wandb / "seconds").write_text("2")
    orphan = subprocess.Popen([sys.executable, "-m", "sweeps.training.wandb_sync", str(attempt)])
    deadline = time.monotonic() + 600
    while not calls(wandb):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert send(attempt) == ""
    assert orphan.wait(600) == 0
    assert send(attempt) == ""
    assert len(calls(wandb)) == 1
    assert len(json.loads((attempt / "wandb-sent.json").read_text())) == 1


def test_without_wandb_here_records_wait_and_that_is_told(wandb: Path, tmp_path: Path) -> None:
    (wandb / "__init__.py").write_text("raise ImportError('no protobuf')")
    leave(tmp_path / "ab", 1)
    said: list[str] = []
    Syncer(tmp_path / "log", said.append).finish(state_of(tmp_path / "ab", Cause.FINISHED))
    (told,) = read_unsent(tmp_path)
    assert said == [told.to_text()]
    assert (told.attempts, told.what) == (1, "wait in their folders")
    assert "ImportError: no protobuf" in told.why


def works_with(**execution: str) -> list[Work]:
    return [Work("ab", "/ab", "m:f", {"execution": execution}, adapter=TRAINING)]


def test_what_a_launch_leaves_unsent_is_told_by_the_next(wandb: Path, tmp_path: Path) -> None:
    log = tmp_path / "wandb.log"
    said: list[str] = []
    assert syncer_of(works_with(), log, said.append) is None
    first = syncer_of(works_with(wandb_project="p", wandb_mode="auto"), log, said.append)
    assert first is not None
    first.advance(state_of(tmp_path / "ab", None))
    leave(tmp_path / "ab", 1)
    # Killed there; the next launch names neither project nor mode.
    second = syncer_of(works_with(), log, said.append)
    assert second is not None
    assert not second.advance(state_of(tmp_path / "ab", Cause.FINISHED))
    assert calls(wandb) == []
    assert said == [
        "Weights & Biases: records of 1 attempt wait in their folders: this launch does not send them (without "
        "execution.wandb_mode=offline); launch with execution.wandb_project=NAME execution.wandb_mode=offline, which "
        "sends them"
    ]
    third = syncer_of(works_with(wandb_project="p", wandb_mode="offline"), log, said.append)
    assert third is not None
    third.finish(state_of(tmp_path / "ab", Cause.FINISHED))
    assert (len(calls(wandb)), len(said), read_unsent(tmp_path)) == (1, 1, [])


def test_records_that_an_attempt_could_not_keep_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    syncer = Syncer(tmp_path / "log", said.append, sends=False)
    failed = tmp_path / "ab" / "attempts" / "1"
    failed.mkdir(parents=True)
    (failed / WANDB_FAILURE).write_text("it does not record this run (ModuleNotFoundError: No module named 'wandb')\n")
    syncer.advance(state_of(tmp_path / "ab", None))
    (told,) = read_unsent(tmp_path)
    assert said == [told.to_text()]
    assert "No module named 'wandb'); record.jsonl has everything; correct that in the jobs' Python" in said[0]


def test_a_full_disk_stops_no_controller(wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path / "ab", 1)
    said: list[str] = []
    (tmp_path / "log").mkdir()  # where a file is to be written
    Syncer(tmp_path / "log", said.append).finish(state_of(tmp_path / "ab", Cause.FINISHED))
    assert "wait in their folders: Is a directory: " in said[0]


def test_status_tells_what_is_not_sent() -> None:
    unsent = [left_behind(3)]
    found = status_of("s", SweepState.of([], "t-"), ClusterConfig("here", "local", []), None, lambda counters: {}, {},
                      lambda run: None, 0.0, unsent=unsent)  # fmt: skip
    assert found.to_dict()["wandb"] == [unsent[0].to_dict()]
    assert any(line.startswith("Weights & Biases: records of 3 attempts wait") for line in status_lines(found, ""))


def test_wandb_itself_takes_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("HOME", str(tmp_path))
    attempt = tmp_path / "ab" / "attempts" / "1"
    attempt.mkdir(parents=True)
    settings = wandb.Settings(console="off", silent=True)
    with wandb.init(project="p", id="ab", mode="offline", dir=str(attempt), settings=settings) as run:
        run.log({"loss": 1.0})
    wandb.teardown()
    assert "No API key configured" in send(attempt)
    assert not (attempt / "wandb-sent.json").exists()
    # Sent by a process that was killed before it noted so: wandb's own mark is enough.
    (file,) = attempt.glob("wandb/offline-run-*/*.wandb")
    file.with_name(f"{file.name}.synced").touch()
    assert send(attempt) == ""
