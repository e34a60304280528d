"""How jobs are launched: submitit's runner, setup and teardown, srun, other interpreters and containers; and that no
signal meets submitit's own handlers."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from emulated_slurm import OTHER_USER, EmulatedSlurm, wait_for
from sweeping import GPU, ONE_NODE, SampleSweep, causes, check, standings

from muloco_runner.record import ExitCode
from sweeps.clusters.slurm.batch_job import write_job
from sweeps.clusters.slurm.commands import submit_script
from sweeps.clusters.slurm.script import PAYLOADS
from sweeps.controller import Tick
from sweeps.engine.cluster import JobRequest
from sweeps.engine.cluster_config import AllocationConfig
from sweeps.engine.policy import RULES, Cause
from sweeps.engine.work import Attempt, Need, Work

pytestmark = pytest.mark.slurm


def options(**given: Any) -> dict[str, Any]:
    return {**GPU, **given}


def log_of(sweep: SampleSweep, tag: str) -> str:
    return (sweep.folder.cluster_dir / "logs" / f"{tag}.log").read_text()


def wrapper(path: Path, *lines: str) -> Path:
    """An executable that stands in for a container's: it says so, and starts what it is given."""
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)
    return path


class Job:
    """One job of one attempt, submitted without a controller."""

    def __init__(self, root: Path, setup: list[str] | None = None, need: Need = ONE_NODE, **given: Any) -> None:
        arguments = given.pop("arguments", {"seconds": [0.0]})
        work = Work("w", str(root / "runs" / "w"), "cluster_work:count", arguments, need)
        self.attempt = Attempt(work, 1)
        self.request = JobRequest("job-000001", "gpu", (self.attempt,), need.nodes, 8, 8, 5.0)
        self.folder, self.run = root / "cluster", Path(work.folder)
        for name in ("requests", "scripts", "logs", PAYLOADS):
            (self.folder / name).mkdir(parents=True)
        allocation = AllocationConfig("gpu", 8, options={"partition": "gpu", "account": "lab", **given})
        self.script = write_job(self.request, allocation, setup or [], self.folder)

    def submit(self) -> str:
        self.number = submit_script(self.script)
        return self.number

    @property
    def log(self) -> str:
        return (self.folder / "logs" / "job-000001.log").read_text()

    def end(self, slurm: EmulatedSlurm) -> str:
        """The job's state, exit code and signal once it has ended."""
        return slurm.accounted_end(f"--jobs={self.number}")


def test_submitits_runner_runs_a_job_of_an_odd_path(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    for name in ("a 100%job's %a", "back\\slash %j"):
        job = Job(tmp_path / name)
        job.submit()
        assert job.end(slurm) == "COMPLETED|0:0", job.log
        assert (job.run / "result.json").exists()
        assert "submitit INFO" in job.log
        link = job.folder / PAYLOADS / f"{job.number}_submitted.pkl"
        assert os.readlink(link) == "job-000001_submitted.pkl"


def test_a_sweep_may_be_in_a_folder_of_any_name(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    needs = {"wide": Need(2, 8, 8, 5.0, 0.1), "one": ONE_NODE}
    sweep = SampleSweep(tmp_path / "100%job's \\ %a", {"wide": {}, "one": {}}, options(), needs=needs)
    state = sweep.run()
    assert set(standings(state).values()) == {"done"}
    check(sweep, state, slurm)


def test_an_exit_code_is_the_jobs_under_every_way_to_start(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "teardown": {"teardown": ["echo after >&2", "false", "exit 9"]},
        "srun": {"use_srun": True},
        "both": {"srun_args": ["--label"], "teardown": ["echo after"]},
    }
    jobs = {name: Job(tmp_path / name, arguments={"codes": [65]}, **given) for name, given in ways.items()}
    for job in jobs.values():
        job.submit()
    for name, job in jobs.items():
        assert job.end(slurm) == "FAILED|65:0", f"{name}: {job.log}"
        assert ("after\n" in job.log) == (name in ("teardown", "both")), job.log
        assert len(json.loads((job.run / "started").read_text())["gpus"].split(",")) == 8


SIGNALS = ("USR2", "TERM")
STAGES: dict[str, Callable[[Job], bool]] = {
    "setup": lambda job: (job.folder / "in setup").exists(),
    "start of the runner": lambda job: (job.folder / "waits").exists(),
    "work": lambda job: (job.run / "started").exists(),
    "end": lambda job: (job.folder / "ends").exists(),
}
"""When signals are sent. A hook holds the runner where submitit's handlers are installed: before ours and after."""
HOLD = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["HOLD_IN"])

def held(what):
    (folder / what).touch()
    while not (folder / "go on").exists():
        time.sleep(0.05)

def trace(frame, event, argument):
    if os.getpid() != MAIN or frame.f_code.co_filename.rpartition("/")[2] != "batch_job.py":
        return
    if event == "call" and frame.f_code.co_name == "run_request" and os.environ["HOLD_AT"] == "start of the runner":
        held("waits")
    if event == "c_call" and argument is sys.exit and os.environ["HOLD_AT"] == "end":
        held("ends")

MAIN = os.getpid()
if "sweeps.clusters.slurm.runner" in " ".join(sys.orig_argv):
    sys.setprofile(trace)
"""


def signalled(root: Path, stage: str, given: dict[str, Any]) -> Job:
    """A submitted job that waits at the stage."""
    setup = [f"export PATH={root.parent}:$PATH HOLD_IN='{root / 'cluster'}' HOLD_AT='{stage}'"]
    setup += [f"export PYTHONPATH={root.parent / 'hooks'}:{Path(__file__).parent}:$PYTHONPATH"]
    setup += [f"touch '{root}/cluster/in setup'", "sleep 3600"] if stage == "setup" else []
    job = Job(root, setup, arguments={"seconds": [0.0 if stage == "end" else 3600.0]}, **given)
    job.submit()
    return job


@pytest.mark.parametrize("stage", STAGES)
def test_no_signal_requeues_a_job_or_is_swallowed(slurm: EmulatedSlurm, tmp_path: Path, stage: str) -> None:
    wrapper(tmp_path / "scontrol", f"echo $@ >> {tmp_path}/requeued")
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(HOLD)
    ways: dict[str, dict[str, Any]] = {"exec": {}, "teardown": {"teardown": ["echo after"]}, "srun": {"use_srun": True}}
    jobs = {
        (way, name): signalled(tmp_path / f"{way} {name}", stage, given)
        for way, given in ways.items()
        for name in ("USR2", "TERM")
    }
    for (way, name), job in jobs.items():
        wait_for(lambda job=job: STAGES[stage](job), stage)  # type: ignore[misc]
        # To all processes of the job; srun takes SIGTERM to mean an end at once, but for its steps SLURM sends it.
        whole = ["--full"] if stage == "setup" or way != "srun" else []
        slurm.run("scancel", *whole, f"--signal={name}", job.number)
        (job.folder / "go on").touch()
    for way, job in jobs.items():
        end = job.end(slurm)
        assert "Bypassing signal" not in job.log, way
        if stage == "end":
            assert end == "COMPLETED|0:0", f"{way}: {job.log}"
        else:
            assert not end.startswith("COMPLETED"), f"{way}: {job.log}"
            assert stage == "setup" or (job.attempt.folder / "ending.json").exists(), f"{way}: {job.log}"
            assert not (job.attempt.folder / "setup_failed.txt").exists()
    assert not (tmp_path / "requeued").exists()


def test_a_setup_that_fails_is_its_own_cause_with_its_words(
    slurm: EmulatedSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, Cause.SETUP_FAILED, replace(RULES[Cause.SETUP_FAILED], backoff_seconds=0.1))
    setup = ["echo 'no such module: cuda/99' >&2; no_such_command"]
    sweep = SampleSweep(tmp_path, {"w": {}}, options(), setup=setup)
    state = sweep.run()
    assert standings(state) == {"w": "held"}
    assert causes(state, "w") == [Cause.SETUP_FAILED] * 2
    assert state.runs["w"].attempts[0].detail == (
        "`no_such_command` ended with code 127: no_such_command: command not found"
    )
    assert "setup" in str(state.runs["w"].held)
    assert not sweep.starts("w")


def test_a_missing_interpreter_fails_as_setup_does(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    job = Job(tmp_path, python="/no/such/python")
    job.submit()
    assert job.end(slurm) == f"FAILED|{int(ExitCode.SETUP_FAILED)}:0"
    assert "/no/such/python" in (job.attempt.folder / "setup_failed.txt").read_text()


def other_interpreters() -> list[str]:
    """Of other minor versions, on the path or where pyenv keeps them."""
    found = [shutil.which(f"python3.{minor}") for minor in (11, 12, 13) if minor != sys.version_info.minor]
    kept = sorted(map(str, Path.home().glob(".pyenv/versions/3.1[123]*/bin/python")), reverse=True)
    alike = f"{sys.version_info.major}.{sys.version_info.minor}."
    return [
        path
        for path in (*found, *kept)
        if path and f"/{alike}" not in path and subprocess.run([path, "-c", ""], check=False).returncode == 0
    ]


def test_work_runs_by_another_python_than_the_drivers(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    others = other_interpreters()
    if not others:
        pytest.skip("no other Python here")
    packages = ":".join(path for path in sys.path if path.endswith("site-packages"))
    setup = [f"export PYTHONPATH={packages}:$PYTHONPATH"]
    sweep = SampleSweep(tmp_path, {"w": {}}, options(python=others[0], setup=setup))
    state = sweep.run()
    assert standings(state) == {"w": "done"}
    record = json.loads((tmp_path / "runs" / "w" / "attempts" / "1" / "environment.json").read_text())
    assert not record["python"].startswith(".".join(map(str, sys.version_info[:2])) + ".")
    check(sweep, state, slurm)


def test_conda_and_modules_are_lines_of_setup(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    environment = tmp_path / "envs" / "mine" / "bin"
    environment.mkdir(parents=True)
    wrapper(environment / "python", f'echo "conda python" >> {tmp_path}/said', f'exec {sys.executable} "$@"')
    (tmp_path / "conda.sh").write_text(f'conda() {{ export PATH="{tmp_path}/envs/$2/bin:$PATH"; }}\n')
    (tmp_path / "modules.sh").write_text(f"module() {{ echo module $2 >> {tmp_path}/said; }}\n")
    setup = [f"source {tmp_path}/modules.sh", "module load cuda/12.4"]
    setup += [f"source {tmp_path}/conda.sh", "conda activate mine"]
    sweep = SampleSweep(tmp_path, {"w": {}}, options(python="python"), setup=setup)
    state = sweep.run()
    assert standings(state) == {"w": "done"}
    assert (tmp_path / "said").read_text().splitlines() == ["module cuda/12.4", "conda python"]


def test_apptainer_starts_the_work_by_the_python_setting(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    # exec --nv --bind DIR image.sif python ...
    wrapper(
        tmp_path / "apptainer", f'echo "$1 $2 $3 $4 $5" >> {tmp_path}/said', "shift 6", f'exec {sys.executable} "$@"'
    )
    python = f"{tmp_path}/apptainer exec --nv --bind {tmp_path} image.sif python"
    needs = {"wide": Need(2, 8, 8, 5.0, 0.1), "one": ONE_NODE}
    sweep = SampleSweep(tmp_path, {"wide": {}, "one": {}}, options(python=python), needs=needs)
    state = sweep.run()
    assert set(standings(state).values()) == {"done"}
    said = (tmp_path / "said").read_text().splitlines()
    assert said == [f"exec --nv --bind {tmp_path} image.sif"] * 4, "two jobs, and two ranks of the wide one"
    check(sweep, state, slurm)


def test_pyxis_starts_every_step_in_the_container(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    # srun as pyxis extends it: it takes --container-image, and starts the command within.
    real = shutil.which("srun")
    lines = ["declare -a rest=()", 'for word in "$@"; do case "$word" in']
    lines += [f'--container-*) echo "$word" >> {tmp_path}/said ;; *) rest+=("$word") ;; esac; done']
    wrapper(tmp_path / "srun", *lines, f'exec {real} "${{rest[@]}}"')
    needs = {"wide": Need(2, 8, 8, 5.0, 0.1), "one": ONE_NODE}
    container = ["--container-image=nvcr.io#nvidia/pytorch:25.01-py3", f"--container-mounts={tmp_path}"]
    setup = [f"export PATH={shlex.quote(str(tmp_path))}:$PATH"]
    sweep = SampleSweep(
        tmp_path, {"wide": {}, "one": {}}, options(srun_args=container, comment="grant 17"), needs=needs, setup=setup
    )
    state = sweep.run()
    assert set(standings(state).values()) == {"done"}
    assert sorted((tmp_path / "said").read_text().splitlines()) == sorted(container * 3)
    assert {len(start["gpus"].split(",")) for name in needs for start in sweep.starts(name)} == {8}
    check(sweep, state, slurm)


def test_sbatch_options_of_users_mean_what_sbatch_means(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    given = {
        "comment": "grant 17 \\ 100%", "exclude": slurm.nodes[:2], "mem_gb": 3, "gres": "gpu:h100",
        "additional_parameters": {"mail_type": ["END", "FAIL"], "nice": 5, "contiguous": True, "reboot": False},
    }  # fmt: skip
    job = Job(tmp_path, **given)
    job.submit()
    shown = slurm.run("scontrol", "show", "job", job.number)
    assert job.end(slurm) == "COMPLETED|0:0"
    for word in (
        "Comment=grant 17 \\ 100%", f"ExcNodeList={slurm.nodes[0][:-2]}[01-02]", "MinMemoryNode=3G", "Nice=5",
        "Contiguous=1", "MailType=END,FAIL", "TresPerNode=gres:gpu:h100:8", "WCKey=", "Requeue=0",
    ):  # fmt: skip
        assert word in shown or word == "WCKey=", (word, shown)
    assert "WCKey=submitit" not in shown


def test_preempted_work_under_srun_saves_itself(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    sweep = SampleSweep(tmp_path, {"w": {"seconds": [300, 0]}}, options(qos="low", use_srun=True))
    occupied: list[str] = []

    def on_tick(tick: Tick) -> None:
        if sweep.starts("w") and not occupied:
            occupied.append(slurm.occupy(8, qos="high"))
        if occupied and tick.state.counts["waiting"]:
            slurm.run("scancel", f"--user={OTHER_USER}")

    state = sweep.run(on_tick)
    assert causes(state, "w") == [Cause.PREEMPTED, Cause.FINISHED]
    ending = json.loads((tmp_path / "runs" / "w" / "attempts" / "1" / "ending.json").read_text())
    assert ending["exit_code"] == ExitCode.WANTS_MORE_TIME
    check(sweep, state, slurm)
