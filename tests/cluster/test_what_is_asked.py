"""Jobs get what was asked for, or somebody is told that they never will, on a real SLURM."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from emulated_slurm import EmulatedSlurm
from sweeping import GPU, SampleSweep, standings

from sweeps.clusters.slurm.slurm_cluster import SlurmCluster
from sweeps.controller import Tick
from sweeps.engine.quota import VerdictKind, all_limits, best_verdict
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Adapter, Need, Work

pytestmark = pytest.mark.slurm


def test_of_two_partitions_the_one_that_allows_the_time_is_used(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    either = {**GPU, "partition": "debug,gpu", "quota": {"nodes": 1}}
    needs = {"long": Need(1, 8, 8, 45, 0.1), "short": Need(1, 8, 8, 3, 0.1)}
    sweep = SampleSweep(tmp_path, {"long": {"seconds": [1]}, "short": {"seconds": [1]}}, either, needs=needs)
    state = sweep.run()
    assert set(standings(state).values()) == {"done"}
    rows = slurm.run("squeue", "-h", "--states=all", "-o", "%P %l", f"--name={','.join(_tags(sweep))}").splitlines()
    assert {row for row in rows if row.endswith(" 45:00")} == {"gpu 45:00"}
    assert any(row.endswith(" 3:00") for row in rows)


def _tags(sweep: SampleSweep) -> list[str]:
    return [event["tag"] for event in sweep.events("submitted")]


def test_limits_of_partitions_and_nodes_say_never_by_name(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    def answer(need: Need, **options: object) -> tuple[VerdictKind, str]:
        allocation = {**GPU, "cpus_per_node": 1000, "max_wall_minutes": 5000, **options}
        config = SampleSweep(tmp_path, {}, allocation).definition.read_cluster()
        limits = SlurmCluster(config, tmp_path).limits(lambda tag: False)
        assert not limits.note
        work = Work("w", "w", "m:f", need=need, adapter=Adapter())
        found = best_verdict(work, config.allocations, all_limits(config, limits, SweepState.of([])))
        return found.kind, found.why

    assert answer(Need(1, 8, 96, 60))[0] is VerdictKind.RUN
    kind, why = answer(Need(1, 8, 1000, 60))
    assert (kind, why) == (VerdictKind.NEVER, "partition gpu: nodes=96 CPUs of one node, asks 1,000")
    assert "partition debug MaxTime=30 minutes of one job, asks 31" in answer(Need(1, 8, 8, 31), partition="debug")[1]
    assert answer(Need(1, 8, 8, 31), partition="debug,gpu")[0] is VerdictKind.RUN
    assert "QOS brief MaxWall" in answer(Need(1, 8, 8, 11), qos="brief")[1]
    assert "mem=2000G" in answer(Need(1, 8, 8, 11), sbatch={"mem": "2000G"})[1]


def test_a_job_that_slurm_will_never_start_is_held_in_words(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    failed = slurm.run("sbatch", "--parsable", "--account=lab", "--output=/dev/null", "--wrap=exit 1").strip()
    held = slurm.hold_nodes(8)
    slurm.wait_for_start(held)
    sweep = SampleSweep(tmp_path, {"w": {"seconds": [1]}}, submit_confirm_timeout_seconds=2.0)
    changed: list[str] = []

    def spoil(tick: Tick) -> None:
        for job in tick.state.jobs.values():
            if job.job_id is not None and not changed:
                changed.append(job.job_id)
                slurm.run("scontrol", "update", f"JobId={job.job_id}", f"Dependency=afterok:{failed}")

    state = sweep.run(spoil)
    assert re.match("can never run: .* DependencyNeverSatisfied", state.runs["w"].held or "")
    assert not state.runs["w"].attempts
    slurm.run("scancel", held)
