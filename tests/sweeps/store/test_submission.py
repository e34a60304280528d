"""The right to submit passes from sweep to sweep, and whoever gets it knows whether the queue must be read again."""

import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muloco_runner.config import ConfigError
from sweeps.store.lease import TTL_SECONDS, Holder
from sweeps.store.submission import STATE, Submission


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(STATE, str(tmp_path))
    # Set while a lease is held.
    monkeypatch.setenv("MULOCO_SUBMITTER", "")
    return tmp_path


def submission(*scopes: str) -> Submission:
    return Submission(lambda: scopes)


def leases(state: Path) -> list[Path]:
    return sorted(state.glob("submission-*/*/[0-9]*"))


def test_one_submits_at_a_time_and_the_other_is_told_who() -> None:
    first, second = submission("c-gpu"), submission("c-cpu", "c-gpu")
    assert first.acquire(0) == ""
    assert str(os.getpid()) in second.acquire(0)
    assert not second.is_held
    # What it could have had is free for others.
    assert submission("c-cpu").acquire(0) == ""
    assert submission("d-gpu").acquire(0) == ""


def test_a_third_learns_who_holds_it_for_what_and_since_when() -> None:
    sweep, other = submission("c-gpu"), Submission(lambda: ["c-gpu"], "demo in /scratch/demo")
    controller = Holder("login2", 1, 0.0, 0.0)
    assert sweep.held_by_another(controller) == ""
    other.acquire(0)
    told = sweep.held_by_another(controller)
    assert told.startswith("waits until sweep demo in /scratch/demo has submitted its jobs (host ")
    assert re.search(rf", pid {os.getpid()}, since \S+.*\d\d:\d\d", told)
    # It is the controller itself that holds it.
    assert sweep.held_by_another(Holder(socket.gethostname(), os.getpid(), 0.0, 0.0)) == ""
    other.release()
    assert sweep.held_by_another(controller) == ""


def test_one_that_waits_gets_it_when_it_is_given_back() -> None:
    first, second = submission("c-gpu"), submission("c-gpu")
    first.acquire(0)
    began = time.monotonic()
    assert second.acquire(0.3) != ""
    assert time.monotonic() - began >= 0.3
    first.release()
    assert second.acquire(600) == ""


def test_the_queue_is_read_again_only_after_somebody_else() -> None:
    first, second = submission("c-gpu"), submission("c-gpu")
    tokens = first.tokens()
    first.acquire(0)
    assert first.is_unchanged(tokens)
    assert second.tokens() == {"c-gpu": None}
    first.release()
    tokens = first.tokens()
    second.acquire(0)
    second.release()
    first.acquire(0)
    assert not first.is_unchanged(tokens)


def test_a_look_while_another_submits_does_not_count() -> None:
    first, second = submission("c-gpu"), submission("c-gpu")
    second.acquire(0)
    tokens = first.tokens()
    second.release()
    first.acquire(0)
    assert not first.is_unchanged(tokens)


def test_without_scopes_nothing_is_written(state: Path) -> None:
    alone = submission()
    alone.check()
    assert alone.acquire(0) == ""
    assert alone.is_unchanged(alone.tokens())
    assert alone.renew()
    assert not list(state.iterdir())


def acquire_and_die() -> None:
    submission("c-gpu").acquire(0)
    os._exit(9)


def test_a_killed_holder_on_this_host_is_replaced_at_once() -> None:
    process = multiprocessing.get_context("fork").Process(target=acquire_and_die)
    process.start()
    process.join()
    assert submission("c-gpu").acquire(0) == ""


def test_a_silent_holder_on_another_host_is_replaced_after_a_while(state: Path) -> None:
    first, second = submission("c-gpu"), submission("c-gpu")
    first.acquire(0)
    (lease,) = leases(state)
    lease.write_text(json.dumps({"host": "login2", "pid": 1, "started_at": 0.0}))
    assert "login2" in second.acquire(0)
    os.utime(lease, (time.time() - 2 * TTL_SECONDS,) * 2)
    assert second.acquire(0) == ""
    assert not first.renew()
    assert not first.is_held


def test_the_sbatch_of_a_killed_holder_is_waited_for(tmp_path: Path) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/bash\nread\n")
    sbatch.chmod(0o755)
    code = (
        "import os, subprocess, sys; from sweeps.store.submission import Submission;"
        "Submission(lambda: ['c-gpu']).acquire(0); subprocess.Popen([sys.argv[1]]); os._exit(9)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(sbatch)], stdin=subprocess.PIPE)
    holder.wait()
    assert str(holder.pid) in submission("c-gpu").acquire(0)
    assert holder.stdin is not None
    holder.stdin.close()
    assert submission("c-gpu").acquire(5) == ""


def test_a_folder_that_cannot_be_written_is_one_line(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (state / "file").touch()
    monkeypatch.setenv(STATE, str(state / "file"))
    for ask in (submission("c-gpu").check, lambda: submission("c-gpu").acquire(0)):
        with pytest.raises(ConfigError, match=f"set {STATE} to a folder") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_killed_controllers_wants_are_those_of_the_next_one(state: Path) -> None:
    killed, other = (Submission(lambda: ["c-gpu"], f"{name} in /scratch") for name in ("demo", "other"))
    for one in (killed, other):
        one.want(True, until=100.0)
    following = Submission(lambda: ["c-gpu"], "demo in /scratch")
    assert following.num_wanting(50.0) == 1
    assert other.num_wanting(50.0) == 1
    following.want(False, until=0.0)
    assert other.num_wanting(50.0) == 0


def test_sweeps_that_want_nodes_of_one_allocation_count_each_other(state: Path) -> None:
    first, second, third = submission("c-gpu"), submission("c-cpu", "c-gpu"), submission("d-gpu")
    for one in (first, second, third):
        one.want(True, until=100.0)
    assert [one.num_wanting(100.0) for one in (first, second, third)] == [1, 1, 0]
    # One that was killed says nothing any more.
    assert first.num_wanting(100.5) == 0
    assert len(list(state.glob("submission-*/*/wants-*"))) == 3
    second.want(True, until=200.0)
    second.want(False, until=200.0)
    assert first.num_wanting(100.0) == 0
