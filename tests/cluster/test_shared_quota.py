"""The user's quota on a real SLURM that several of their jobs and sweeps share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_slurm import EmulatedSlurm, wait_for
from sweeping import GPU, SampleSweep

from sweeps.clusters.slurm.slurm_cluster import SlurmCluster
from sweeps.controller import Tick
from sweeps.engine.cluster import Resource

pytestmark = pytest.mark.slurm


def test_status_counts_the_sweeps_own_jobs_once(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    sweep = SampleSweep(tmp_path, {f"w{n}": {"seconds": [8]} for n in range(3)}, {**GPU, "quota": {"nodes": 2}})
    driver = sweep.start()
    try:
        wait_for(lambda: sum(bool(sweep.starts(name)) for name in ("w0", "w1", "w2")) == 2, 30, "both jobs")
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
        together.append(len(tick.state.jobs))

    sweep.run(look)
    assert max(together) == 1
    slurm.run("scancel", other)
