"""The controller on this machine's own slots: real processes, killed for real."""

import contextlib
import dataclasses
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
from state_values import values_of

from sweeps.cli.explain import why
from sweeps.clusters.local import LocalCluster
from sweeps.controller import Controller, Tick
from sweeps.engine import policy
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.outcome import Outcome
from sweeps.engine.policy import Cause
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Attempt, Need, Work
from sweeps.node.attempt_files import read_outcome, write_error_in_folder
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import LeaseHeld
from sweeps.training.adapter import TRAINING

HERE = Path(__file__).parents[1]
CLUSTER = {"kind": "local", "tick_seconds": 0.05, "allocations": [{"name": "here", "quota": {"jobs": 2}}]}


@pytest.fixture(autouse=True)
def samples_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Whatever a test leaves running is ended with it."""
    yield tmp_path
    for process in psutil.process_iter(["cmdline"]):
        if any(str(tmp_path) in word for word in process.info["cmdline"] or ()):
            process.kill()


def works(root: Path, plans: dict[str, dict[str, Any]]) -> list[Work]:
    need = Need(expected_minutes=0.1)
    return [
        Work(
            name, str(root / "runs" / name), "sample_work:count", plan, need, {"algorithm": "sample"}, adapter=TRAINING
        )
        for name, plan in plans.items()
    ]


def make(config: ClusterConfig, folder: Path) -> LocalCluster:
    return LocalCluster(folder, config.allocations[0].quota.jobs or 1)


def controller_of(root: Path, plans: dict[str, dict[str, Any]]) -> Controller:
    folder = SweepFolder(root, "sample")
    definition = Definition("sample", "local", CLUSTER, works(root, plans))
    folder.write_definition(definition)
    return Controller(folder, definition, make)


def run_sweep(root: Path, plans: dict[str, dict[str, Any]]) -> SweepState:
    return controller_of(root, plans).run()


def starts(root: Path, name: str) -> int:
    return len((root / "runs" / name / "started").read_text().splitlines())


def words(state: SweepState) -> dict[str, str]:
    return {name: run.status for name, run in state.runs.items()}


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
    monkeypatch.setattr("sweeps.engine.policy.RULES", {c: _without_backoff(r) for c, r in _rules().items()})
    state = run_sweep(root, plans)
    assert words(state) == {"mended": "done", "broken": "held", "wrong": "held", "large": "done", "fine": "done"}
    assert {name: starts(root, name) for name in plans} == {
        "mended": 2, "broken": 2, "wrong": 1, "large": 2, "fine": 1,
    }  # fmt: skip
    assert state.runs["large"].adjustments == {"memory_halvings": 1}
    assert "config cannot run" in (state.runs["wrong"].held or "")


def test_a_folder_that_cannot_be_written_holds_its_run_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.engine.policy.RULES", {c: _without_backoff(r) for c, r in _rules().items()})
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
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)  # noqa: PLW1510
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


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
        if run.not_before > time.time():
            said.append(why(run, tick.state, {}, time.time(), True))
        if len(run.attempts) == 2:
            (small_disk / "filler").unlink(missing_ok=True)

    state = controller_of(root, {"full": {}}).run(on_tick)
    assert words(state) == {"full": "done"}
    causes = [attempt.cause for attempt in state.runs["full"].attempts]
    assert causes == [Cause.DISK_FULL] * (len(causes) - 1) + [Cause.FINISHED]
    place = f"its folder is in {small_disk}"
    assert set(said) == {f"waits for disk space ({place}): tried again after pauses of up to an hour"}
    assert state.runs["full"].attempts[0].detail.startswith(f"{place}, where 0 GB are free: No space left on device: ")


def test_a_controller_on_a_full_disk_waits_and_loses_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.engine.policy.RULES", {c: _without_backoff(r) for c, r in _rules().items()})
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
    assert write_error_in_folder(attempt) == ""
    assert not list(attempt.folder.iterdir())
    (private / "w" / "status.json").write_text("{}")
    for mode, path in ((0o500, attempt.folder), (0o000, private / "w")):
        path.chmod(mode)
        assert "Permission denied" in write_error_in_folder(attempt)
        assert read_outcome(attempt) == Outcome(finished=False)
    (private / "w").chmod(0o700)


def _rules() -> Any:
    from sweeps.engine.policy import RULES

    return RULES


def _without_backoff(rule: Any) -> Any:
    import dataclasses

    return dataclasses.replace(rule, backoff_seconds=0.0)


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
import test_local
plans = {plans!r}
test_local.run_sweep(Path({root!r}), plans)
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
    plans = {f"w{n}": {"seconds": 1.5} for n in range(2)}
    process = start_controller(root, plans)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and not all((root / "runs" / name / "started").exists() for name in plans):
        time.sleep(0.05)
    victims = [
        child
        for child in psutil.process_iter(["cmdline"])
        if str(root) in " ".join(child.info["cmdline"] or ()) and "submitit" in " ".join(child.info["cmdline"] or ())
    ]
    for victim in victims:
        victim.kill()
    assert process.wait(timeout=180) == 0
    folder = SweepFolder(root, "sample")
    state = folder.read_state(folder.read_definition()).state
    assert set(words(state).values()) == {"done"}
    for name in plans:
        assert starts(root, name) == 2
        assert [attempt.cause for attempt in state.runs[name].attempts] == [Cause.LOST, Cause.FINISHED]


def test_a_polite_stop_saves_the_work_at_hand(root: Path) -> None:
    plans = {f"w{n}": {"seconds": 60} for n in range(3)}
    process = start_controller(root, plans)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and not (root / "runs" / "w0" / "started").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=180) != 0
    folder = SweepFolder(root, "sample")
    state = folder.read_state(folder.read_definition()).state
    assert not state.jobs
    assert set(words(state).values()) == {"waiting"}
    assert state.runs["w0"].attempts[0].cause is Cause.STOPPED
