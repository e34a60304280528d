"""Jobs queued behind others on a real SLURM: the quota at every moment, and whoever is killed or cancelled."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from emulated_slurm import PATIENCE_SECONDS, EmulatedSlurm, wait_for
from sweeping import GPU, ONE_NODE, SampleSweep, check, die, put_before, sampled_nodes, standings

from sweeps.clusters.slurm.slurm_cluster import SlurmCluster
from sweeps.controller import Tick
from sweeps.engine.cluster import JobRequest
from sweeps.engine.policy import Cause

pytestmark = pytest.mark.slurm

TICK = 4.0
SHORT = replace(ONE_NODE, expected_minutes=1.5 / 60)
HALF_A_NODE = replace(SHORT, gpus_per_node=4, cpus_per_node=4)


def sweep_of(root: Path, number: int, nodes: int, tick: float = TICK, **plan: Any) -> SampleSweep:
    """Runs of 1 s each, every third of which shares its node with another."""
    names = [f"w{n}" for n in range(number)]
    needs = {name: HALF_A_NODE if n % 3 == 0 else SHORT for n, name in enumerate(names)}
    gpu = {**GPU, "whole_nodes": True, "quota": {"nodes": nodes}}
    plans = {name: {"seconds": [1.0], **plan} for name in names}
    return SampleSweep(root, plans, gpu, needs=needs, tick_seconds=tick)


def started_behind(sweep: SampleSweep) -> int:
    """Jobs that were submitted before there was room for them."""
    requests = [path.read_text() for path in (sweep.folder.cluster_dir / "requests").glob("*.json")]
    return sum('"after": ["' in request for request in requests)


def test_sweeps_that_queue_ahead_share_one_quota(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    sweeps = [sweep_of(tmp_path / str(n), 9, nodes=3, gate=str(gate)) for n in range(2)]
    with sampled_nodes(slurm, every=0.3) as samples:
        drivers = [sweep.start() for sweep in sweeps]
        wait_for(lambda: max(samples, default=0) >= 3, "three nodes at work")
        gate.touch()
        for driver in drivers:
            driver.join(PATIENCE_SECONDS)
    assert max(samples) == 3
    for sweep in sweeps:
        assert started_behind(sweep)
        state = sweep.folder.read_state(sweep.definition).state
        assert set(standings(state).values()) == {"done"}
        check(sweep, state, slurm)


@pytest.mark.parametrize("after", [False, True], ids=["before sbatch", "after sbatch"])
def test_a_controller_killed_at_a_successor_strands_and_doubles_none(
    slurm: EmulatedSlurm, tmp_path: Path, after: bool
) -> None:
    submit = SlurmCluster.submit

    def die_at_a_successor() -> None:
        def submit_and_die(self: SlurmCluster, request: JobRequest, numbers: tuple[str, ...] = ()) -> str:
            if numbers and not after:
                die()
            number = submit(self, request, numbers)
            if numbers:
                die()
            return number

        SlurmCluster.submit = submit_and_die  # type: ignore[method-assign, assignment]

    sweep = sweep_of(tmp_path, 6, nodes=1)
    with sampled_nodes(slurm, every=0.3) as samples:
        for _ in range(2):
            driver = sweep.start(die_at_a_successor)
            driver.join(PATIENCE_SECONDS)
            assert driver.exitcode == -signal.SIGKILL
        state = sweep.run()
    assert set(standings(state).values()) == {"done"}
    assert max(samples) == 1
    assert {len(sweep.starts(name)) for name in state.runs} == {1}
    check(sweep, state, slurm)


def test_cancels_preemption_and_a_lowered_quota_keep_the_quota(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    # Until the quota is lowered no job ends but those that are told to.
    gate = tmp_path / "gate"
    sweep = sweep_of(tmp_path, 15, nodes=3, gate=str(gate))
    done: list[str] = []

    def look(tick: Tick) -> None:
        behind = [job for job in tick.state.jobs.values() if job.is_behind and job.job_id is not None]
        at_work = [job for job in tick.state.jobs.values() if sweep.starts(job.request.attempts[0].work.name)]
        if not done and len(behind) > 3 and at_work:
            # The one in the middle of a chain, and one that runs: by nobody who asks the sweep.
            slurm.run("scancel", str(behind[0].job_id))
            done.append(behind[0].request.attempts[0].work.name)
            slurm.run("scancel", "--signal=TERM", str(at_work[0].job_id))
        elif len(done) == 1 and behind:
            sweep.folder.send("own_limits", limits={"nodes": 1})
            sweep.folder.send("cancel", runs=[behind[-1].request.attempts[0].work.name])
            done.append(behind[-1].request.attempts[0].work.name)
        elif tick.state.own_limits:
            gate.touch()

    with sampled_nodes(slurm, every=0.3) as samples:
        state = sweep.run(look)
    assert len(done) == 2
    assert max(samples) <= 3
    assert max(samples[-5:]) <= 1
    assert Counter(standings(state).values())["done"] >= 11
    for name in done:
        assert state.runs[name].held or state.runs[name].done
    # Accounting never tells of a job that was cancelled before its start.
    assert not list(sweep.root.glob("runs/*/twice"))
    assert all(len(sweep.starts(name)) <= len(run.attempts) for name, run in state.runs.items())


def test_pause_withdraws_what_is_queued_and_resume_brings_it_back(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    sweep = sweep_of(tmp_path, 6, nodes=1, gate=str(gate))
    looks: list[tuple[int, int]] = []

    def look(tick: Tick) -> None:
        looks.append((len(tick.state.jobs), sum(job.is_behind for job in tick.state.jobs.values())))
        if len(looks) == 2:
            sweep.folder.send("paused", paused=True)
        if tick.state.paused:
            gate.touch()
        if tick.state.paused and not tick.state.jobs:
            sweep.folder.send("paused", paused=False)

    state = sweep.run(look)
    assert looks[1][1]
    assert (0, 0) in looks[2:-1]
    assert set(standings(state).values()) == {"done"}
    assert {cause for run in state.runs.values() for cause in [a.cause for a in run.attempts]} == {Cause.FINISHED}


def test_where_sbatch_refuses_dependencies_todays_way_goes_on(
    slurm: EmulatedSlurm, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refusal = 'grep -q "dependency" "${@: -1}" && { echo "sbatch: error: no dependencies here" >&2; exit 1; }'
    put_before("sbatch", f'{refusal}\nexec $REAL "$@"', tmp_path / "bin")
    state = sweep_of(tmp_path, 4, nodes=1, tick=0.5).run()
    assert set(standings(state).values()) == {"done"}
    said = capfd.readouterr().err
    assert said.count("takes no jobs that wait for others") == 1
    assert "no dependencies here" in said


def test_another_jobs_successor_is_not_counted_beside_it(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = slurm.hold_nodes(1)
    slurm.run(
        "sbatch",
        "--account=lab",
        "--gres=gpu:8",
        "--output=/dev/null",
        f"--dependency=afterany:{first}",
        "--wrap=sleep 1",
    )
    with sampled_nodes(slurm, every=0.3) as samples:
        driver = sweep_of(tmp_path, 3, nodes=2, gate=str(gate)).start()
        wait_for(lambda: max(samples, default=0) >= 2, "one node beside the other job")
        slurm.run("scancel", first)
        gate.touch()
        driver.join(PATIENCE_SECONDS)
    assert max(samples) == 2
    assert os.path.exists(tmp_path / "runs" / "w2" / "result.json")
