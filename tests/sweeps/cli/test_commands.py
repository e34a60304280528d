"""`muloco-sweep` as people type it: exit codes and last lines as they see them."""

import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from sweeps.__main__ import main
from sweeps.cli import queries
from sweeps.cli.control import CommandResult
from sweeps.cli.live_snapshot import Snapshot
from sweeps.engine.cluster import JobRequest
from sweeps.engine.policy import Cause
from sweeps.engine.quota import Verdict, VerdictKind
from sweeps.engine.work import Attempt, Need, Work
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import Lease
from sweeps.store.ledger import Ledger
from sweeps.training.adapter import TRAINING

HERE = Path(__file__).parents[1]
CLUSTER = {"kind": "local", "tick_seconds": 0.05, "allocations": [{"name": "here", "quota": {"jobs": 1}}]}


@pytest.fixture
def sweep(root: Path) -> SweepFolder:
    return make_sweep(root)


def make_sweep(root: Path) -> SweepFolder:
    """Three runs, none tried yet."""
    folder = SweepFolder(root, "sample")
    works = []
    for n, name in enumerate(("DDP-Muon", "MuLoCo", "MuLoCo")):
        labels = {"algorithm": name, "lr": 0.0078125, "num_params": 29120}
        place = str(root / "runs" / f"{n}ab")
        need = Need(expected_minutes=1.0)
        works.append(Work(f"{n}ab", place, "sample_work:count", {"seconds": 3600.0}, need, labels, adapter=TRAINING))
    folder.write_definition(Definition("sample", "local", CLUSTER, works))
    return folder


STARTED: set[str] = set()
"""Commands that have had a process of their own, as people start them. Later ones are called: a process takes longer to
begin than most of them to do all they do."""


def say(*words: object, code: int = 0) -> str:
    command = list(map(str, words))
    run = called if command[0] in STARTED - {"launch"} else started
    STARTED.add(command[0])
    returned, out, errors = run(command)
    assert returned == code, out + errors
    assert "Traceback" not in errors
    if code == 2:
        assert errors.count("\n") == 1
        return errors
    return out


def started(command: list[str]) -> tuple[int, str, str]:
    whole = [sys.executable, "-m", "sweeps", *command]
    done = subprocess.run(whole, capture_output=True, text=True, check=False, timeout=600)
    return done.returncode, done.stdout, done.stderr


def called(command: list[str]) -> tuple[int, str, str]:
    out, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["muloco-sweep", *command])
        with pytest.raises(SystemExit) as ended:
            main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out.getvalue(), errors.getvalue()


def standings(root: Path, *filters: str) -> dict[str, str]:
    found: dict[str, Any] = json.loads(say("status", root, *filters, "--json"))
    return {run["run"]: run["standing"] for run in found["runs"]}


def test_filters_find_runs_by_label_number_model_and_name(sweep: SweepFolder) -> None:
    root = sweep.root
    assert set(standings(root, "algorithm=ddp_muon")) == {"0ab"}
    assert set(standings(root, "algorithm=muloco", "run=1,2")) == {"1ab", "2ab"}
    assert set(standings(root, "lr=0.00781", "model=29k")) == {"0ab", "1ab", "2ab"}
    assert "matches" in say("status", root, "model=82k", code=2)
    assert "no such" in say("status", root, "algoritm=muloco", code=2)


def test_options_may_stand_anywhere(sweep: SweepFolder) -> None:
    for words in (("--json", sweep.root, "run=1"), (sweep.root, "--json", "run=1"), (sweep.root, "run=1", "--json")):
        (run,) = json.loads(say("status", *words))["runs"]
        assert run["run"] == "1ab"
    command = [sys.executable, "-m", "sweeps", "status", "--jsn"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "--jsn" in done.stderr) == (2, True)


def test_quota_without_an_option_shows_limits_and_use(sweep: SweepFolder) -> None:
    lines = [line.split() for line in say("quota", sweep.root).splitlines()]
    assert ["here", "quota.jobs", "jobs", "0", "0", "1"] in lines
    (told,) = [one for one in json.loads(say("quota", sweep.root, "--json"))["limits"] if one["limit"] == "quota.jobs"]
    assert (told["most"], told["used"], told["used_by_others"]) == (1, 0, 0)


def test_hold_and_retry_without_a_controller_take_effect_at_once(sweep: SweepFolder) -> None:
    root = sweep.root
    assert "--all" in say("hold", root, code=2)
    assert "2 runs held" in say("hold", root, "algorithm=muloco")
    assert standings(root) == {"0ab": "waiting", "1ab": "held", "2ab": "held"}
    assert "held by hand" in say("explain", "1", root)
    assert "1 run released" in say("retry", root, "run=1")
    assert standings(root) == {"0ab": "waiting", "1ab": "waiting", "2ab": "held"}
    assert "no run is affected" in say("retry", root, "run=0")


def test_what_acts_answers_programs_too(sweep: SweepFolder) -> None:
    root = sweep.root
    held = json.loads(say("hold", root, "algorithm=muloco", "--json"))
    assert held == {
        "sweep": "sample", "command": "hold", "runs": ["1ab", "2ab"], "why": "held by hand", "already": [],
        "changed": True, "at_next_tick": False,
    }  # fmt: skip
    assert json.loads(say("retry", root, "run=0", "--json"))["runs"] == []
    assert json.loads(say("quota", root, "--nodes", "3", "--json"))["limits"] == {"nodes": 3}
    said = json.loads(say("status", root, "--json"))
    assert said["own_limits"] == {"nodes": 3}
    assert said["counts"] == {"held": 2, "waiting": 1}
    assert said["held"] == {"held by hand": ["1ab", "2ab"]}


def test_a_launch_that_ends_with_runs_waiting_says_why_to_programs(sweep: SweepFolder) -> None:
    (shape,) = Snapshot(sweep).state.waiting
    never = Verdict(VerdictKind.NEVER, "no node is so large")
    said = Snapshot(sweep, {shape: never}).to_dict()
    assert said["waiting"] == {"can never run: no node is so large": 3}
    assert {run["why"] for run in said["runs"]} == set(said["waiting"])
    assert not said["controlled"]


def test_mistakes_are_one_line(sweep: SweepFolder, tmp_path: Path) -> None:
    assert "root=" in say("status", tmp_path / "nowhere", code=2)
    assert "starts with it" in say("explain", "7", sweep.root, code=2)
    assert "no attempt yet" in say("logs", "0ab", sweep.root, code=2)
    assert "zero or more" in say("quota", sweep.root, "--nodes", "-1", code=2)
    assert "one root" in say("status", "a", "b", code=2)
    for command in (["pause"], ["resume"], ["quota", "--nodes", "3"]):
        said = say(*command, sweep.root, "run=0", code=2)
        assert f"{command[0]} is about the whole sweep" in said
        assert "single runs" in said
    assert "about one run" in say("explain", "0ab", sweep.root, "run=1", code=2)
    assert not sweep.ledger_file.exists()
    assert "no effect" in say("launch", "+sweep=demo", f"root={tmp_path}/new", "--max-gpu-hours", "3", code=2)
    assert not (tmp_path / "new").exists()


def controller(root: Path) -> "subprocess.Popen[bytes]":
    code = (
        "import sys; from pathlib import Path; from sweeps.store.folder import SweepFolder; "
        "from sweeps.clusters import *;"
        "from sweeps.controller import Controller; f = SweepFolder(Path(sys.argv[1]), 'sample');"
        "Controller(f, f.read_definition(), make_cluster).run()"
    )
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, "-c", code, str(root)], env={**os.environ, "PYTHONPATH": path})


def wait_for(root: Path, wanted: dict[str, str]) -> None:
    deadline = time.monotonic() + 600
    while (now := standings(root)) != wanted:
        assert time.monotonic() < deadline, now
        time.sleep(0.1)


def test_a_running_controller_is_told(sweep: SweepFolder) -> None:
    root = sweep.root
    process = controller(root)
    wait_for(root, {"0ab": "running", "1ab": "waiting", "2ab": "waiting"})
    assert "quota.jobs" in say("status", root)
    assert "next tick" in say("pause", root)
    assert "next tick" in say("cancel", root, "run=0")
    wait_for(root, {"0ab": "held", "1ab": "waiting", "2ab": "waiting"})
    assert "paused" in say("status", root)
    say("hold", root, "run=1")
    say("resume", root)
    wait_for(root, {"0ab": "held", "1ab": "held", "2ab": "running"})
    history = say("explain", "0ab", root)
    assert "cancelled" in history
    assert "retry" in history
    say("cancel", root, "--all")
    assert process.wait(timeout=600) == 0
    assert set(standings(root).values()) == {"held"}


def test_cancelling_one_of_a_pack_says_whom_it_stops(sweep: SweepFolder) -> None:
    root = sweep.root
    attempts = tuple(Attempt(work, 1) for work in sweep.read_definition().works)
    request = JobRequest(f"{sweep.tag_prefix}000001", "here", attempts, 1, 0, 1, 5.0)
    sweep.write_request(request)
    (sweep.cluster_dir / "cancel").mkdir(parents=True)
    lease = Lease(sweep.lease_dir)
    lease.renew()
    runs = {attempt.work.name: 1 for attempt in attempts}
    ledger = Ledger(sweep.ledger_file, lease)
    ledger.append("intended", tag=request.tag, allocation="here", runs=runs)
    lease.release()
    words = ["cancel", root, "run=1"]
    assert json.loads(say(*words, "--json"))["also_ends"] == ["0ab", "2ab"]
    told = say(*words)
    assert "1 run cancelled; " in told
    assert told.strip().endswith(
        ". This also ends 2 other runs in the same jobs (0ab, 2ab): these save a checkpoint and are submitted again, "
        "which does not count against them"
    )
    without = CommandResult("s", "cancel", {"runs": ["a"], "also_ends": ["b"]}, at_next_tick=True).to_text("cancelled")
    assert without.startswith("s: 1 run cancelled at the controller's next tick. This also ends 1 other run in")
    assert "checkpoint" not in without
    (job,) = sweep.read_state(sweep.read_definition()).state.jobs.values()
    assert job.cancelling == {"1ab": Cause.CANCELLED}


def test_what_is_queued_behind_others_is_held_and_withdrawn(sweep: SweepFolder) -> None:
    root = sweep.root
    (sweep.cluster_dir / "cancel").mkdir(parents=True)
    lease = Lease(sweep.lease_dir)
    lease.renew()
    ledger = Ledger(sweep.ledger_file, lease)
    before: tuple[str, ...] = ()
    for number, work in enumerate(sweep.read_definition().works, 1):
        tag = f"{sweep.tag_prefix}{number:06d}"
        sweep.write_request(JobRequest(tag, "here", (Attempt(work, 1),), 1, 0, 1, 5.0, after=before))
        ledger.append("intended", tag=tag, allocation="here", runs={work.name: 1})
        before = (*before, tag)
    lease.release()
    told = say("hold", root, "run=1")
    assert "1 run held" in told
    assert "Those of the 2 jobs queued behind running ones that this concerns are withdrawn" in told
    jobs = sweep.read_state(sweep.read_definition()).state.jobs
    assert [job.cancel_pending for job in jobs.values()] == [False, True, False]
    assert "1 job queued behind running ones" in say("quota", root, "--nodes", "1")
    say("pause", root)
    jobs = sweep.read_state(sweep.read_definition()).state.jobs
    assert [job.cancel_pending for job in jobs.values()] == [False, True, True]
    at_tick = CommandResult("s", "pause", {"paused": True}, at_next_tick=True, num_behind=2).to_text("paused")
    assert at_tick.endswith(
        "next tick. Until then those of the 2 jobs queued behind running ones may start whose turn comes"
    )


def test_logs_follow_an_attempt_to_its_end_alone(
    sweep: SweepFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = sweep.read_definition().works[0]
    output = Path(work.folder) / "attempts" / "1" / "stdout.log"
    output.parent.mkdir(parents=True)
    output.write_text("one\n")
    lease = Lease(sweep.lease_dir)
    ledger = Ledger(sweep.ledger_file, lease)

    def begin(number: int) -> None:
        tag = f"{sweep.tag_prefix}{number:06d}"
        sweep.write_request(JobRequest(tag, "here", (Attempt(work, number),), 1, 0, 1, 5.0))
        ledger.append("intended", tag=tag, allocation="here", runs={work.name: number})

    def add() -> None:
        output.write_text(output.read_text() + "two\n")

    def end() -> None:
        output.write_text(output.read_text() + "three\n")
        ledger.append("refused", tag=f"{sweep.tag_prefix}000001", why="as a test wants it")
        begin(2)

    begin(1)
    happens = iter([add, lambda: None, end])
    reads: list[SweepFolder] = []
    monkeypatch.setattr(queries.time, "sleep", lambda seconds: next(happens)())
    monkeypatch.setattr(queries, "Snapshot", lambda folder: reads.append(folder) or Snapshot(folder))
    arguments = argparse.Namespace(
        name="logs", run="0ab", root_and_filters=[str(sweep.root)], sweep=None, follow=True, json=False
    )
    assert queries.logs(arguments) == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
    # The sweep is read where its ledger has grown, and once more in the beginning.
    assert len(reads) == 2
    lease.release()


def test_a_command_in_the_inbox_that_nobody_knows_does_no_harm(sweep: SweepFolder) -> None:
    sweep.send("explode", runs=["0ab"])
    say("hold", sweep.root, "run=1")
    assert standings(sweep.root) == {"0ab": "waiting", "1ab": "held", "2ab": "waiting"}
    assert not list(sweep.inbox.iterdir())


def test_help_loads_neither_hydra_nor_submitit() -> None:
    code = (
        "import sys\nimport sweeps.__main__\n"
        "heavy = {'torch', 'hydra', 'submitit', 'rich', 'pandas'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.thorough
def test_a_detached_launch_outlives_the_command_and_is_unique(root: Path) -> None:
    narrow = ["+sweep=demo", f"root={root}", "model=29k", "algorithm=ddp_adamw", "global_batch_tokens=2048"]
    narrow += ["tokens_per_parameter=0.5", "cluster=local"]
    assert "watch" in say("launch", *narrow, "--detach")
    deadline = time.monotonic() + 600
    while set(standings(root).values()) != {"done"}:
        if time.monotonic() > deadline:
            raise AssertionError((root / "sweeps" / "demo" / "controller.log").read_text())
        time.sleep(1)
    (run, *others) = standings(root)
    assert len(others) == 2
    assert "It is done" in say("explain", run, root)
    assert "The sweep is over" in say("watch", root)
    say("logs", run, root)
    # Launched again there is nothing left to do, and nothing is done again.
    attempts = sorted(root.glob("runs/*/attempts/*"))
    assert "3 done" in say("launch", *narrow)
    # A program learns the end as `status` says it, and who is to be told of it is told and written down nowhere.
    told = root / "told"
    ended = say("launch", *narrow, f"+cluster.on_event='tee {told}'", "--json")
    assert json.loads(ended) == json.loads(say("status", root, "--json"))
    assert json.loads(told.read_text()) == {"sweep": "demo", "event": "ended", "counts": {"done": 3}}
    assert not [path for path in (root / "sweeps").rglob("*") if path.is_file() and b"tee" in path.read_bytes()]
    say("launch", *narrow, f"+cluster.on_event='tee {root}/no'", "--on-event", f"tee {root}/instead")
    assert (root / "instead").exists()
    assert not (root / "no").exists()
    # A multirun of the trainer is the same sweep.
    train = [sys.executable, "-m", "muloco_runner", "--multirun", *narrow]
    assert "3 done" in subprocess.run(train, capture_output=True, text=True, check=True, timeout=600).stdout
    assert sorted(root.glob("runs/*/attempts/*")) == attempts


def test_a_launch_that_cannot_begin_says_so_also_when_detached(root: Path) -> None:
    (root / "runs").write_text("in the way")
    assert "another root" in say("launch", "+sweep=demo", f"root={root}", "--detach", code=2)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_ledger_is_one_clear_line_and_loses_nothing_else(sweep: SweepFolder, damage: str) -> None:
    root = sweep.root
    say("hold", root, "run=0")
    say("hold", root, "run=1")
    whole = sweep.ledger_file.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    if damage == "cut":
        sweep.ledger_file.write_bytes(whole[: last + 20])
    else:
        sweep.ledger_file.write_bytes(whole[: last + 20] + b"\x00" + whole[last + 21 :])
    said = say("status", root)
    assert said.count("Damage in line 2 of the ledger") == 1
    assert standings(root) == {"0ab": "held", "1ab": "waiting", "2ab": "waiting"}
    say("hold", root, "run=2")
    assert standings(root) == {"0ab": "held", "1ab": "waiting", "2ab": "held"}
    assert "Damage in line 2" in say("status", root)


def test_a_damaged_definition_is_one_line(sweep: SweepFolder) -> None:
    sweep.definition_file.write_bytes(sweep.definition_file.read_bytes()[:-30])
    assert "launch the sweep again" in say("status", sweep.root, code=2)
    sweep.definition_file.write_text("{}")
    assert "launch the sweep again" in say("hold", sweep.root, "--all", code=2)


def as_nobody(said: Path, words: list[str]) -> None:
    """Runs a command as another user; what it says goes into a file."""
    output = os.open(said, os.O_WRONLY)
    os.setgid(65534)
    os.setuid(65534)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["muloco-sweep", *words]
    main()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_others_may_look_and_are_told_who_may_change() -> None:
    # pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        sweep = make_sweep(Path(folder))
        said = Path(folder) / "said"

        def ask(*words: str) -> tuple[int | None, str]:
            said.write_text("")
            process = multiprocessing.get_context("fork").Process(target=as_nobody, args=(said, list(words)))
            process.start()
            process.join()
            return process.exitcode, said.read_text()

        code, text = ask("status", folder, "--json")
        assert code == 0, text
        assert json.loads(text)["counts"] == {"waiting": 3}
        code, text = ask("cancel", folder, "--all")
        assert code == 2, text
        assert "only root may change this sweep" in text
        assert text.count("\n") == 1
        assert not list(sweep.inbox.glob("*"))
