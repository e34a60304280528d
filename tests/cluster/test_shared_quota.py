"""The user's quota on a real SLURM that several of their jobs and sweeps share."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from emulated_slurm import PATIENCE_SECONDS, EmulatedSlurm, wait_for
from sweeping import GPU, SampleSweep, put_before, sampled_nodes

from sweeps.clusters.slurm.slurm_cluster import SlurmCluster
from sweeps.controller import Tick
from sweeps.engine import moves
from sweeps.engine.cluster import Resource

pytestmark = pytest.mark.slurm


TWO_NODES = {**GPU, "quota": {"nodes": 2}}


def call_this_host(name: str) -> None:
    setattr(socket, "gethostname", lambda: name)  # noqa: B010


def work_of(sweeps: list[SampleSweep]) -> set[str]:
    return {run.status for sweep in sweeps for run in sweep.folder.read_state(sweep.definition).state.runs.values()}


@pytest.mark.parametrize("hosts", [["login1", "login1"], ["login1", "login2", "login3"]], ids=["one host", "three"])
def test_sweeps_started_at_once_share_one_quota(slurm: EmulatedSlurm, tmp_path: Path, hosts: list[str]) -> None:
    gate = tmp_path / "gate"
    plans = {f"w{n}": {"seconds": [2.5], "gate": str(gate)} for n in range(3)}
    sweeps = [SampleSweep(tmp_path / str(n), plans, TWO_NODES) for n in range(len(hosts))]
    with sampled_nodes(slurm, every=0.3) as samples:
        drivers = [sweep.start(partial(call_this_host, host)) for sweep, host in zip(sweeps, hosts, strict=True)]
        wait_for(lambda: max(samples, default=0) >= 2, "both nodes at work")
        gate.touch()
        for driver in drivers:
            driver.join(PATIENCE_SECONDS)
    assert work_of(sweeps) == {"done"}
    assert max(samples) == 2


def die_in_sbatch() -> None:
    """`kill -9` while sbatch is under way: it goes on without its parent, slowly."""
    run = subprocess.run

    def run_and_die(command: list[str], **options: object) -> object:
        if command[0] == "sbatch":
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGKILL))
        return run(command, **options)  # type: ignore[call-overload]

    subprocess.run = run_and_die  # type: ignore[assignment]


def test_a_killed_controllers_submission_is_waited_for(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    put_before("sbatch", 'until [ -e $HERE/go ]; do sleep 0.1; done; "$REAL" "$@"', tmp_path / "bin")
    one_node = {**GPU, "quota": {"nodes": 1}}
    first, second = (SampleSweep(tmp_path / name, {"w": {"seconds": [4]}}, one_node) for name in ("first", "second"))
    with sampled_nodes(slurm, every=0.3) as samples:
        killed = first.start(die_in_sbatch)
        killed.join(PATIENCE_SECONDS)
        assert killed.exitcode == -signal.SIGKILL

        def look(tick: Tick) -> None:
            (tmp_path / "bin" / "go").touch()
            said.append(tick.waits_for)

        said: list[str] = []
        second.run(look)
        first.run()
    assert "has submitted its jobs" in said[0]
    assert work_of([first, second]) == {"done"}
    assert max(samples) == 1


def test_a_pending_job_moves_to_an_allocation_that_frees_up(
    slurm: EmulatedSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "_LEAST_WAIT_MINUTES", 0.05)
    full = {**GPU, "name": "full", "quota": {"nodes": 1}, "sbatch": {"begin": "now+1hour"}}
    free = {**GPU, "name": "free", "quota": {"nodes": 1}}
    sweep = SampleSweep(tmp_path, {f"w{n}": {"seconds": [4]} for n in range(2)}, full, free)
    with sampled_nodes(slurm, every=0.3) as samples:
        state = sweep.run()
    assert work_of([sweep]) == {"done"}
    assert {attempt.allocation for run in state.runs.values() for attempt in run.attempts} == {"free"}
    assert {len(run.attempts) for run in state.runs.values()} == {1}
    assert max(samples) == 1


def test_status_counts_the_sweeps_own_jobs_once(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    two_nodes = {**GPU, "quota": {"nodes": 2}}
    # Until the test ends: a third job that is queued behind the others, or that has their nodes, waits for no quota.
    sweep = SampleSweep(tmp_path, {f"w{n}": {"seconds": [600]} for n in range(3)}, two_nodes, successors=False)
    driver = sweep.start()
    try:
        wait_for(lambda: sum(bool(sweep.starts(name)) for name in ("w0", "w1", "w2")) == 2, "both jobs")
        done = subprocess.run(
            [sys.executable, "-m", "sweeps", "status", str(tmp_path), "--json"], capture_output=True, check=True
        )
        assert json.loads(done.stdout)["waiting"] == {"quota.nodes: 2 of 2 nodes used": 1}
    finally:
        driver.kill()
        driver.join()


def test_other_jobs_count_by_task_and_by_gpu_however_asked_for(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    for options in (
        ["--array=0-4", "--gpus=1"],
        ["--ntasks=4", "--gpus-per-task=2"],
        ["--nodes=2", "--gres=gpu:h100:3"],
        ["--gpus=h100:4"],
    ):
        slurm.run("sbatch", "--hold", "--account=lab", "--output=/dev/null", *options, "--wrap=sleep 9")
    cluster = SlurmCluster(SampleSweep(tmp_path, {}).definition.read_cluster(), tmp_path)
    assert cluster.observe([]).queue_read
    held = cluster.limits(lambda tag: False).others["gpu"]
    assert held[Resource.SUBMITTED] == 5 + 1 + 1 + 1
    assert held[Resource.GPUS] == 5 + 8 + 6 + 4
    assert held[Resource.NODES] == 5 + 1 + 2 + 1


def test_a_sweep_leaves_room_for_other_jobs_that_wait(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    other = slurm.hold_nodes(1, begin="now+1hour")
    sweep = SampleSweep(tmp_path, {f"w{n}": {"seconds": [1]} for n in range(3)}, {**GPU, "quota": {"nodes": 2}})
    together: list[int] = []

    def look(tick: Tick) -> None:
        together.append(sum(not job.is_behind for job in tick.state.jobs.values()))

    sweep.run(look)
    assert max(together) == 1
    slurm.run("scancel", other)
