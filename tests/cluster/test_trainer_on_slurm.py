"""The whole path: `muloco-sweep launch` on a real SLURM, with the trainer itself as the job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_slurm import OTHER_USER, PATIENCE_SECONDS, EmulatedSlurm, wait_for
from sweeping import causes

from muloco_runner.record import ExitCode, RunFolder
from sweeps.engine.policy import Cause
from sweeps.store.folder import SweepFolder

pytestmark = pytest.mark.slurm
SWEEP = [
    "+sweep=demo",
    "model=29k",
    "algorithm=ddp_muon,muloco",
    "global_batch_tokens=1024",
    "inner_optimizer.lr=0.0078125",
]
SLOWLY = ["tokens_per_parameter=12", "execution.checkpoint_interval_seconds=0.5", "execution.log_interval_steps=5"]


def cluster(quota: str = "{nodes: 8}", **allocation: object) -> list[str]:
    """The `h100` file with this cluster's numbers in the place of its own; the nodes' GPUs are none."""
    values = {"name": "a", "partition": "whole", "account": "lab", "gpus_per_node": 8, "cpus_per_node": 96}
    values |= {"whole_nodes": True, **allocation}
    written = ", ".join([f"quota: {quota}", *(f"{key}: {json.dumps(value)}" for key, value in values.items())])
    return ["cluster=h100", f"cluster.allocations=[{{{written}}}]", "cluster.device=cpu", "cluster.tick_seconds=0.5"]


def sweep_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "sweeps", *words]


def test_preempted_trainers_resume_from_their_checkpoints(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    command = sweep_command("launch", *SWEEP, *SLOWLY, f"root={tmp_path}", *cluster(qos="low"))
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        saved = "runs/*/checkpoint/step-*"
        wait_for(lambda: len({path.parents[1] for path in tmp_path.glob(saved)}) == 2, "first checkpoints")
        # However fast they train, they have not finished before they are told to stop.
        with slurm.suspended_tasks():
            slurm.hold_nodes(8, OTHER_USER, qos="high")
            wait_for(lambda: "PreemptTime=2" in slurm.run("scontrol", "show", "job", "-o"), "preemption")
        wait_for(lambda: len(list(tmp_path.glob("runs/*/attempts/1/ending.json"))) == 2, "preempted attempts")
        slurm.run("scancel", f"--user={OTHER_USER}")
        output, _ = driver.communicate(timeout=PATIENCE_SECONDS)
    finally:
        driver.kill()
    assert driver.returncode == ExitCode.FINISHED, output
    assert "2 done" in output
    folder = SweepFolder(tmp_path, "demo")
    state = folder.read_state(folder.read_definition()).state
    for name, run in state.runs.items():
        assert causes(state, name) == [Cause.PREEMPTED, Cause.FINISHED]
        first, second = run.attempts
        assert first.checkpoint_step > 0
        assert first.tag == state.runs[next(iter(state.runs))].attempts[0].tag, "both on one node"
        record = (RunFolder(run.work.folder).path / "record.jsonl").read_text().splitlines()
        steps = [line["step"] for line in map(json.loads, record) if "step" in line]
        assert steps == sorted(set(steps)), "no step is trained twice on the record"
        assert slurm.accounted_end(f"--name={second.tag}") == "COMPLETED|0:0"


def test_a_sweep_is_left_to_a_controller_on_the_cluster(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    branches = ["schedule=wsd", "schedule.warmup_steps=2", "branches.tokens_per_parameter=[0.4]"]
    shortly = [*SWEEP[:2], "algorithm=ddp_muon", *SWEEP[3:], "schedule.max_warmup_fraction=1", f"root={tmp_path}"]
    shortly += ["tokens_per_parameter=0.7", *branches]
    command = sweep_command("launch", *shortly, *cluster(), "--controller", "slurm", "--max-gpu-hours", "9")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.FINISHED, done.stderr
    assert "controller job" in done.stdout
    wait_for(lambda: not slurm.run("squeue", "-h"), "the end of all jobs")
    folder = SweepFolder(tmp_path, "demo")
    state = folder.read_state(folder.read_definition()).state
    assert state.counts["done"] == 2, folder.controller_log.read_text()
    (branch,) = (run.work for run in state.runs.values() if run.work.trunk is not None)
    assert branch.trunk is not None
    assert RunFolder(branch.folder).read_parent() == (branch.trunk.run, branch.trunk.step)
    assert state.own_limits == {"max_gpu_hours": 9.0}


def test_what_the_cluster_has_not_is_one_line_before_the_queue(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    mistakes = {
        "partition=nowhere": cluster(partition="nowhere"),
        "account=strangers": cluster(account="strangers"),
        "account=elsewhere": cluster(account="elsewhere"),
        "qos=golden": cluster(qos="golden"),
        "qos=normal": cluster(partition="closed", qos="normal"),
        "quota.nodes=-1": cluster(quota="{nodes: -1}"),
        "gpus_per_node=16": cluster(gpus_per_node=16),
    }
    drivers = {
        what: subprocess.Popen(
            sweep_command("launch", *SWEEP, f"root={tmp_path}", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for what, words in mistakes.items()
    }  # fmt: skip
    for what, driver in drivers.items():
        _, errors = driver.communicate(timeout=PATIENCE_SECONDS)
        assert driver.returncode == ExitCode.USAGE, errors
        assert len(errors.splitlines()) == 1, errors
        assert what in errors
    assert not (tmp_path / "sweeps").exists()
    assert not slurm.run("squeue", "-h")
