"""A sweep's controller as a SLURM job of its own: it outlives its time limit, preemption and its node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from emulated_slurm import OTHER_USER, EmulatedSlurm, wait_for
from sweeping import GPU, SampleSweep, check, standings

from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode
from sweeps.cli import controller_job
from sweeps.store.lease import read_holder

pytestmark = pytest.mark.slurm


def controllers(slurm: EmulatedSlurm, sweep: SampleSweep, state: str) -> list[str]:
    name = controller_job.job_name(sweep.folder)
    return slurm.run("squeue", "-h", f"--name={name}", "-t", state, "-o", "%i").split()


def wait_for_controller(slurm: EmulatedSlurm, sweep: SampleSweep, other_than: str = "") -> str:
    """The number of the job that is at work, its successor queued and its lease held."""

    def at_work() -> bool:
        running = controllers(slurm, sweep, "R")
        holder = read_holder(sweep.folder.lease_dir)
        held = holder is not None and holder.is_alive
        return held and bool(running) and running != [other_than] and bool(controllers(slurm, sweep, "PD"))

    wait_for(at_work, "controller at work")
    return controllers(slurm, sweep, "R")[0]


def test_a_controllers_job_outlives_limit_preemption_and_node(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    # However long the four controllers take, the sweep is not over before.
    gate = tmp_path / "gate"
    plans: dict[str, Any] = {"gated": {"gate": str(gate)}} | {f"w{n}": {"seconds": [4]} for n in range(8)}
    # Whoever preempts a controller wants its whole node, so the runs that may be there make way too.
    sweep = SampleSweep(tmp_path, plans, {**GPU, "qos": "low", "quota": {"nodes": 2}}, controller={"qos": "low"})
    sweep.folder.write_definition(sweep.definition)
    cluster = sweep.definition.read_cluster()
    first, is_new = controller_job.start(sweep.folder, cluster)
    assert is_new
    assert controller_job.start(sweep.folder, cluster) == (first, False)
    assert wait_for_controller(slurm, sweep) == first
    slurm.end_time(first)
    second = wait_for_controller(slurm, sweep, first)
    holder = read_holder(sweep.folder.lease_dir)
    assert holder is not None
    os.kill(holder.pid, signal.SIGKILL)
    third = wait_for_controller(slurm, sweep, second)
    node = slurm.run("squeue", "-h", "-j", third, "-o", "%N").strip()
    slurm.lose_node(node)
    slurm.declare_down(node)
    fourth = wait_for_controller(slurm, sweep, third)
    node = slurm.run("squeue", "-h", "-j", fourth, "-o", "%N").strip()
    slurm.occupy(1, qos="high", nodelist=node)
    assert wait_for_controller(slurm, sweep, fourth) not in (first, second, third, fourth)
    slurm.run("scancel", f"--user={OTHER_USER}")
    gate.touch()
    wait_for(lambda: not slurm.run("squeue", "-h"), "the sweep's end")
    state = sweep.folder.read_state(sweep.definition).state
    assert set(standings(state).values()) == {"done"}
    assert not controllers(slurm, sweep, "PD,R")
    check(sweep, state, slurm)


def test_a_queued_controller_of_other_code_is_replaced(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    sweep = SampleSweep(tmp_path, {"w": {}}, GPU)
    sweep.folder.write_definition(sweep.definition)
    script = sweep.folder.cluster_dir / "controller.sh"
    script.parent.mkdir()
    script.write_text(f"#!/bin/bash\nexport PYTHONPATH={tmp_path}/code/0a1b2c3d4e5f\nexec false\n")
    before = slurm.run(
        "sbatch", "--parsable", "--hold", f"--job-name={controller_job.job_name(sweep.folder)}", str(script)
    ).strip()
    # The new one shall not queue its successor before it has been looked at.
    slurm.occupy(8)
    job, is_new = controller_job.start(sweep.folder, sweep.definition.read_cluster())
    assert is_new
    assert controllers(slurm, sweep, "PD,R") == [job]
    assert job != before
    slurm.run("scancel", f"--user={OTHER_USER}")
    wait_for(lambda: not slurm.run("squeue", "-h"), "the sweep's end")
    assert set(standings(sweep.folder.read_state(sweep.definition).state).values()) == {"done"}


def test_a_mistake_ends_the_succession(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    sweep = SampleSweep(tmp_path, {"w": {"seconds": [3600]}}, GPU)
    sweep.folder.write_definition(sweep.definition)
    first, _ = controller_job.start(sweep.folder, sweep.definition.read_cluster())
    wait_for_controller(slurm, sweep)
    sweep.folder.definition_file.write_text("damaged")
    slurm.run("scancel", first)
    wait_for(lambda: not controllers(slurm, sweep, "PD,R,CG"), "the succession's end")
    assert "damaged" in sweep.folder.controller_log.read_text()


def test_what_slurm_refuses_is_one_line(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    sweep = SampleSweep(tmp_path, {"w": {}}, GPU, controller={"partition": "nowhere"})
    sweep.folder.write_definition(sweep.definition)
    with pytest.raises(ConfigError, match=r"the controller's job: .*[Ii]nvalid partition.*`controller` of the cluster"):
        controller_job.start(sweep.folder, sweep.definition.read_cluster())


def test_on_a_cluster_without_slurm_there_is_no_such_controller(tmp_path: Path) -> None:
    words = ["launch", "+sweep=demo", f"root={tmp_path}", "--controller", "slurm"]
    done = subprocess.run([sys.executable, "-m", "sweeps", *words], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.USAGE
    assert "cluster local is not a SLURM cluster" in done.stderr
    assert len(done.stderr.splitlines()) == 1
