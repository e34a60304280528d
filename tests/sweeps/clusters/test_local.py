"""The controller on this machine's own slots: real processes, killed for real."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import submitit
from sample_sweeps import HERE, controller_of, rules_without_backoff, run_sweep, starts, words

from sweeps.engine.outcome import Outcome
from sweeps.engine.policy import Cause
from sweeps.engine.work import Attempt, Work
from sweeps.node.attempt_files import read_outcome, write_error_in_folder
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import LeaseHeld


def wait_for_start(root: Path, name: str) -> None:
    deadline = time.monotonic() + 600
    while not (root / "runs" / name / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_piece_of_work_is_done_once(root: Path) -> None:
    plans: dict[str, dict[str, Any]] = {f"w{n}": {"seconds": 0.05} for n in range(12)}
    state = run_sweep(root, plans)
    assert set(words(state).values()) == {"done"}
    assert all(starts(root, name) == 1 for name in plans)
    assert set(words(run_sweep(root, plans)).values()) == {"done"}
    assert all(starts(root, name) == 1 for name in plans)


def test_a_folder_may_have_any_name(root: Path) -> None:
    odd = root / "100%job's \\ %a"
    assert words(run_sweep(odd, {"w": {}})) == {"w": "done"}
    assert [path.name for path in root.iterdir()] == [odd.name]


def test_each_ending_has_its_consequence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {
        "mended": {"codes": [1, 0]},
        "broken": {"codes": [1]},
        "wrong": {"codes": [65]},
        "large": {"codes": [70, 0]},
        "fine": {"codes": [0]},
    }
    monkeypatch.setattr("sweeps.engine.policy.RULES", rules_without_backoff())
    state = run_sweep(root, plans)
    assert words(state) == {"mended": "done", "broken": "held", "wrong": "held", "large": "done", "fine": "done"}
    assert {name: starts(root, name) for name in plans} == {
        "mended": 2, "broken": 2, "wrong": 1, "large": 2, "fine": 1,
    }  # fmt: skip
    assert state.runs["large"].adjustments == {"memory_halvings": 1}
    assert "config cannot run" in (state.runs["wrong"].held or "")


def test_a_folder_that_cannot_be_written_holds_its_run_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.engine.policy.RULES", rules_without_backoff())
    obstacles = {name: root / "runs" / name for name in ("lost", "blocked")}
    obstacles["blocked"] /= "attempts"
    for path in obstacles.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a file where a folder should be")
    plans: dict[str, dict[str, Any]] = {name: {} for name in (*obstacles, "fine")}
    state = run_sweep(root, plans)
    assert words(state) == {"lost": "held", "blocked": "held", "fine": "done"}
    for name, path in obstacles.items():
        assert [attempt.cause for attempt in state.runs[name].attempts] == [Cause.CANNOT_WRITE] * 2
        assert f"Not a directory: {path}" in state.runs[name].attempts[-1].detail
        assert "make room or fix it" in (state.runs[name].held or "")
        path.unlink()
    SweepFolder(root, "sample").send("released", runs=list(obstacles))
    assert set(words(run_sweep(root, plans)).values()) == {"done"}
    # The sweep was over, and goes on from its own copy of the code all the same.
    seen = json.loads((root / "runs" / "lost" / "attempts" / "3" / "environment.json").read_text())
    assert seen["code"]["folder"].startswith(str(root)), seen["code"]


@pytest.fixture
def private() -> Iterator[Path]:
    """A folder of a person who is not root, and this process as that person."""
    with tempfile.TemporaryDirectory() as name:
        nobody = 65534
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.chown(name, nobody, nobody)
        os.seteuid(nobody)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def test_a_folder_without_permission_is_an_obstacle_and_no_error(private: Path) -> None:
    attempt = Attempt(Work("w", str(private / "w"), "sample_work:count"), 1)
    # An attempt that never made its folder has left nothing.
    assert write_error_in_folder(attempt) == ""
    assert not attempt.folder.exists()
    attempt.folder.mkdir(parents=True)
    assert write_error_in_folder(attempt) == ""
    assert not list(attempt.folder.iterdir())
    (private / "w" / "status.json").write_text("{}")
    for mode, path in ((0o500, attempt.folder), (0o000, private / "w")):
        path.chmod(mode)
        assert "Permission denied" in write_error_in_folder(attempt)
        assert read_outcome(attempt) == Outcome(finished=False)
    (private / "w").chmod(0o700)


def test_never_more_at_once_than_the_quota(root: Path) -> None:
    plans: dict[str, dict[str, Any]] = {f"w{n}": {"seconds": 0.2} for n in range(8)}
    run_sweep(root, plans)
    spans = []
    for name in plans:
        (line,) = (root / "runs" / name / "started").read_text().splitlines()
        start = float(line.split()[2])
        spans.append((start, start + 0.2))
    for start, _ in spans:
        assert sum(a <= start < b for a, b in spans) <= 2


def test_a_second_controller_is_told_so(root: Path) -> None:
    first = controller_of(root, {"a": {}})
    with pytest.raises(LeaseHeld, match="running on this sweep already"):
        controller_of(root, {"a": {}})
    first.lease.release()
    controller_of(root, {"a": {}})


SCRIPT = """
import sys
sys.path[:0] = {search!r}
from pathlib import Path
import sample_sweeps
plans = {plans!r}
sample_sweeps.run_sweep(Path({root!r}), plans)
"""


def start_controller(root: Path, plans: dict[str, Any]) -> subprocess.Popen[bytes]:
    search = [str(HERE), str(HERE / "clusters")]
    script = SCRIPT.format(search=search, plans=plans, root=str(root))
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)


def test_an_interrupt_while_a_slot_starts_is_not_lost(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = submitit.LocalExecutor.submit

    def submit_amid_an_interrupt(executor: submitit.LocalExecutor, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return submit(executor, *arguments)

    with monkeypatch.context() as amid:
        amid.setattr(submitit.LocalExecutor, "submit", submit_amid_an_interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(root, {"w0": {"seconds": 0.05}})
    assert words(run_sweep(root, {"w0": {"seconds": 0.05}})) == {"w0": "done"}


@pytest.mark.parametrize("seed", range(3))
def test_a_controller_killed_repeatedly_loses_and_repeats_nothing(root: Path, seed: int) -> None:
    plans: dict[str, dict[str, Any]] = {f"w{n}": {"seconds": 0.3} for n in range(10)}
    for kill in range(4):
        process = start_controller(root, plans)
        # Moments that differ from kill to kill: during start-up, between ticks, amid submissions.
        time.sleep(0.35 + 0.173 * ((seed * 4 + kill) % 7))
        assert process.poll() in (None, 0)
        process.kill()
        process.wait()
    state = run_sweep(root, plans)
    assert set(words(state).values()) == {"done"}
    assert {name: starts(root, name) for name in plans} == dict.fromkeys(plans, 1)


def test_work_whose_slot_is_killed_is_done_again(root: Path) -> None:
    gate = root / "gate"
    plans = {f"w{n}": {"gate": str(gate)} for n in range(2)}
    process = start_controller(root, plans)
    for name in plans:
        wait_for_start(root, name)
    victims = [
        child
        for child in psutil.process_iter(["cmdline"])
        if str(root) in " ".join(child.info["cmdline"] or ()) and "submitit" in " ".join(child.info["cmdline"] or ())
    ]
    for victim in victims:
        victim.kill()
    gate.touch()
    assert process.wait(timeout=600) == 0
    folder = SweepFolder(root, "sample")
    state = folder.read_state(folder.read_definition()).state
    assert set(words(state).values()) == {"done"}
    for name in plans:
        assert starts(root, name) == 2
        assert [attempt.cause for attempt in state.runs[name].attempts] == [Cause.LOST, Cause.FINISHED]


def test_a_polite_stop_saves_the_work_at_hand(root: Path) -> None:
    plans = {f"w{n}": {"seconds": 3600} for n in range(3)}
    process = start_controller(root, plans)
    wait_for_start(root, "w0")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=600) != 0
    folder = SweepFolder(root, "sample")
    state = folder.read_state(folder.read_definition()).state
    assert not state.jobs
    assert set(words(state).values()) == {"waiting"}
    assert state.runs["w0"].attempts[0].cause is Cause.STOPPED
