"""A root that was copied, moved or mounted elsewhere: every answer is about the folder that was asked about."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muloco_runner.record import RunFolder, RunStatus
from sweeps.__main__ import main
from sweeps.engine.cluster import JobRequest
from sweeps.engine.policy import Cause
from sweeps.engine.work import Attempt, Work
from sweeps.hydra_apps.job_adapter import HYDRA_JOB
from sweeps.hydra_apps.state_folder import Record, _read, _write
from sweeps.node.attempt_files import is_finished
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import Lease
from sweeps.store.ledger import Ledger
from sweeps.store.moved_root import move_of
from sweeps.training.adapter import TRAINING

CLUSTER = {"kind": "local", "allocations": [{"name": "here", "quota": {"jobs": 1}}]}
COMMANDS = (
    ["explain", "ab"], ["explain", "ab", "--json"], ["explain", "cd", "--json"], ["status"], ["status", "--json"],
    ["watch", "--json"], ["logs", "ab"], ["logs", "ab", "--json"], ["quota"], ["quota", "--json"], ["hold", "run=cd"],
)  # fmt: skip


def training(root: Path, name: str) -> Work:
    return Work(name, str(root / "runs" / name), "sample_work:count", adapter=TRAINING)


def hydra_job(root: Path, name: str) -> Work:
    state = root / "sweeps" / "sample"
    arguments = {"program": str(state / "application.pkl"), "overrides": [f"data={root}/x"], "number": 0, "job": name}
    return Work(name, str(state / "runs" / name), "sweeps.hydra_apps.program:run", arguments, adapter=HYDRA_JOB)


def function(root: Path, name: str) -> Work:
    state = root / "sweeps" / "sample"
    arguments = {"function": "m:f", "arguments": {}, "program": str(state / "functions.pkl")}
    return Work(name, str(state / "runs" / name), "sweeps.functions:call", arguments)


@pytest.fixture(params=[training, hydra_job, function], ids=["training", "hydra", "function"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> SweepFolder:
    """One run that is held, and one in flight; the ledger's words have paths in them."""
    folder = SweepFolder(tmp_path / "old", "sample")
    folder.path.mkdir(parents=True)
    held, running = works = [request.param(folder.root, name) for name in ("ab", "cd")]
    folder.write_definition(Definition("sample", "local", CLUSTER, works))
    lease = Lease(folder.lease_dir)
    ledger = Ledger(folder.ledger_file, lease, lambda: 1000.0)
    ending = {
        "cause": Cause.CANNOT_WRITE.value, "detail": f"Not a directory: {held.folder}/attempts", "at": 1000.0,
        "started_at": 900.0, "checkpoint_step": 0,
    }  # fmt: skip
    for number in (1, 2):
        tag = f"{folder.tag_prefix}00000{number}"
        ledger.append("intended", tag=tag, allocation="here", runs={"ab": number})
        ledger.append("ended", tag=tag, endings={"ab": ending}, gpu_hours=0.0, struck_nodes=[])
    tag = f"{folder.tag_prefix}000003"
    folder.write_request(JobRequest(tag, "here", (Attempt(running, 1),), 1, 0, 1, 5.0))
    ledger.append("intended", tag=tag, allocation="here", runs={"cd": 1})
    ledger.append("started", tag=tag, at=1000.0, nodes=["node"])
    lease.release()
    for work in works:
        place = Path(work.folder, "attempts", "2" if work is held else "1")
        place.mkdir(parents=True)
        (place / "stderr.log").write_text(f"words of {work.name}\n")
        RunFolder(work.folder).write_status(RunStatus(work.name, "running", step=1, num_steps=2))
    return folder


def copied(old: Path, new: Path) -> None:
    shutil.copytree(old, new)


def moved(old: Path, new: Path) -> None:
    old.rename(new)


def mounted(old: Path, new: Path) -> None:
    new.mkdir()
    done = subprocess.run(["mount", "--bind", str(old), str(new)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.decode().strip()}")


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "new"
    # Of a folder on the same device nothing tells whether it is mounted: one that is not is refused.
    subprocess.run(["umount", "--lazy", str(tmp_path / "new")], stderr=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize("comes", [copied, moved, mounted])
def test_every_answer_has_the_paths_that_were_asked_about(
    old: SweepFolder, new: Path, comes: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    comes(old.root, new)
    if comes is copied:
        # What happens in the first folder is not the copy's business.
        shutil.rmtree(old.root)
    told = {}
    for verb, *others in COMMANDS:
        monkeypatch.setattr(sys, "argv", ["muloco-sweep", verb, *others, str(new)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        told[" ".join([verb, *others])] = capsys.readouterr().out
        assert str(old.root) not in told[" ".join([verb, *others])]
    runs = {run["run"]: run for run in json.loads(told["status --json"])["runs"]}
    assert {Path(run["folder"]).parents[0].is_dir() for run in runs.values()} == {True}
    assert all(run["folder"].startswith(str(new)) for run in runs.values())
    assert runs["ab"]["attempts"][0]["detail"].startswith(f"Not a directory: {new}/")
    assert f"see {new}/" in told["explain ab"]
    assert told["logs ab"] == "words of ab\n"
    assert runs["cd"]["standing"] == "running"


def test_jobs_in_flight_are_looked_for_where_the_root_is_now(old: SweepFolder, new: Path) -> None:
    moved(old.root, new)
    folder = SweepFolder(new, "sample")
    state = folder.read_state(folder.read_definition()).state
    (job,) = state.jobs.values()
    (attempt,) = job.request.attempts
    assert str(attempt.folder).startswith(str(new))
    assert not is_finished(attempt.work)
    for value in attempt.work.arguments.values():
        if isinstance(value, str) and "/" in value:
            assert value.startswith(f"{new}/")
    # What the user has said is the user's.
    assert attempt.work.arguments.get("overrides", [f"data={old.root}/x"]) == [f"data={old.root}/x"]


def test_a_root_that_has_not_moved_is_left_alone(old: SweepFolder, new: Path) -> None:
    assert old.read_definition().move is None
    new.symlink_to(old.root)
    assert SweepFolder(new, "sample").read_definition().move is None
    assert move_of({"entry": "m:f", "name": "ab", "folder": "/elsewhere/ab"}, "sample", old.root) is None
    # One that happens to be called as a sweep's own folder is.
    work = {"entry": "m:f", "name": "ab", "folder": "/x/sweeps/sample/runs/ab"}
    move = move_of(work, "sample", old.root)
    assert move is not None
    assert move.old == "/x/sweeps/sample"


def test_a_multirun_goes_on_in_the_folder_it_was_moved_to(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "old", "sample")
    folder.write_definition(Definition("sample", "local", CLUSTER, [hydra_job(folder.root, "ab")]))
    _write(folder, Record(str(folder.root / "2026-11-30" / "10-00-00")))
    folder.root.rename(tmp_path / "new")
    found = _read(SweepFolder(tmp_path / "new", "sample"))
    assert found is not None
    assert found.sweep_dir == str(tmp_path / "new" / "2026-11-30" / "10-00-00")


def test_added_runs_are_where_the_root_is_after_a_new_launch(tmp_path: Path) -> None:
    old, new = SweepFolder(tmp_path / "old", "sample"), SweepFolder(tmp_path / "new", "sample")
    old.path.mkdir(parents=True)
    lease = Lease(old.lease_dir)
    one = {"work": training(old.root, "cd").to_dict(), "group": "g", "values": {}, "others": "", "seed": 0, "why": ""}
    Ledger(old.ledger_file, lease, lambda: 1000.0).append("added", runs=[one])
    lease.release()
    old.root.rename(new.root)
    launched = Definition("sample", "local", CLUSTER, [training(new.root, "ab")])
    runs = new.read_state(launched).state.runs
    assert [run.work.folder for run in runs.values()] == [str(new.root / "runs" / name) for name in ("ab", "cd")]
