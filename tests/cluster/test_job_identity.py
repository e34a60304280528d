"""Jobs on clusters of other habits, on a real SLURM: none is lost sight of, none starts twice, none but ours ends."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from emulated_slurm import EmulatedSlurm, wait_for
from sweeping import (
    GPU,
    SampleSweep,
    causes,
    check,
    die_around_sbatch,
    die_at_line,
    kill_drivers,
    put_before,
    standings,
)

from sweeps.clusters.slurm.slurm_cluster import SlurmCluster
from sweeps.controller import Tick
from sweeps.engine.cluster import JobIdentity, JobState
from sweeps.engine.policy import Cause
from sweeps.engine.work import Need

pytestmark = pytest.mark.slurm
KILLS = 7
ACCOUNTING: dict[str, dict[str, str | None]] = {
    "comments": {},
    "no comments": {"AccountingStoreFlags": None},
    "none": {
        "AccountingStorageType": "accounting_storage/none",
        "AccountingStorageEnforce": None,
        "AccountingStoreFlags": None,
        "AccountingStorageTRES": None,
        "PriorityType": "priority/basic",
        "PreemptType": "preempt/none",
        "PreemptMode": "OFF",
    },
}
FOREIGN = {
    "USER": "somebody", "LOGNAME": "somebody", "SQUEUE_PARTITION": "debug", "SQUEUE_ACCOUNT": "elsewhere",
    "SQUEUE_NAMES": "nothing", "SQUEUE_QOS": "low", "SQUEUE_USERS": "nobody", "SQUEUE_STATES": "SUSPENDED",
    "SQUEUE_FORMAT": "%A", "SACCT_FORMAT": "JobID", "SCANCEL_NAME": "nothing", "SCANCEL_PARTITION": "debug",
    "SLURM_TIME_FORMAT": "relative", "SBATCH_JOB_NAME": "mine", "SBATCH_PARTITION": "debug", "SBATCH_TIMELIMIT": "1",
    "SBATCH_ARRAY_INX": "1-3", "SBATCH_REQUEUE": "1",
}  # fmt: skip


@pytest.mark.parametrize("accounting", ACCOUNTING)
def test_on_foreign_ground_every_run_starts_once(
    slurm: EmulatedSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accounting: str
) -> None:
    if ACCOUNTING[accounting]:
        slurm.configure(**ACCOUNTING[accounting])
    odd = {"job-name": "na|me\nof\udcff others", "comment": "1|2\n3|4|RUNNING"}
    slurm.hold_nodes(1, **odd)
    # Sites bill by the comment, and greet.
    banner = 'echo "*** maintenance on day 12 ***"; $REAL --comment="billed to 12|x" "$@"; code=$?; echo 80 hours left'
    put_before("sbatch", f"{banner}; exit $code", tmp_path / "bin")
    if accounting != "comments":
        # A busy queue forgets a job at its end.
        put_before("squeue", 'exec $REAL "${@/--states=all/--states=PD,R,CG,CF}"', tmp_path / "bin")
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    chance = random.Random(accounting)
    gate = tmp_path / "gate"
    plans: dict[str, Any] = {f"w{n:02d}": {"seconds": [2.0]} for n in range(12)}
    plans["w00"] = {"gate": str(gate)}
    sweep = SampleSweep(
        tmp_path, plans, {**GPU, "quota": {"nodes": 4}}, tick_seconds=0.2, submit_confirm_timeout_seconds=4.0
    )
    ways: list[Callable[[], Callable[[], None]]] = [
        lambda: partial(die_around_sbatch, after=True),
        lambda: partial(die_at_line, chance.randrange(1, 12_000)),
        lambda: partial(die_around_sbatch, after=False),
    ]
    kill_drivers(sweep, [ways[kill % 3]() for kill in range(KILLS)], later=list(plans)[5:])
    gate.touch()
    state = sweep.run()
    assert set(standings(state).values()) == {"done"}
    assert {name: len(sweep.starts(name)) for name in plans} == dict.fromkeys(plans, 1)
    # Without accounting nobody tells a job that was withdrawn in time from one that ran and vanished unseen.
    untold = {Cause.LOST} if accounting == "none" else set()
    for name in plans:
        assert [cause for cause in causes(state, name) if cause not in untold] == [Cause.FINISHED], name


def test_a_job_is_asked_for_by_its_number_before_it_is_lost(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    cluster = SlurmCluster(SampleSweep(tmp_path, {}).definition.read_cluster(), tmp_path)
    number = slurm.hold_nodes(1, **{"job-name": "t-000001"})
    job = JobIdentity("t-000001", time.time(), number)
    observation = cluster.observe([job, JobIdentity("t-000002", time.time(), "999999")])
    seen = observation.jobs["t-000001"]
    assert (seen.job_id, seen.uid) == (number, os.getuid())
    assert observation.complete
    recorded = JobIdentity(job.tag, job.intended_at, number, seen.uid, seen.submitted_at)
    purged = JobIdentity("t-000002", time.time(), "999999", os.getuid(), time.time())
    assert set(cluster.absent([purged])) == {"t-000002"}
    assert set(cluster.absent([recorded, purged])) == {"t-000002"}
    given_again = JobIdentity("t-000003", job.intended_at, number, seen.uid, (seen.submitted_at or 0.0) - 3600)
    assert set(cluster.absent([given_again])) == {"t-000003"}
    cluster.cancel([given_again])
    slurm.run("scontrol", "update", f"JobId={number}", "Comment=billed", "JobName=renamed")
    assert cluster.observe([recorded]).jobs["t-000001"].state is not JobState.ENDED
    slurm.stop_controller()
    assert not cluster.absent([recorded, purged])
    slurm.start_controller()
    wait_for(lambda: cluster.observe([recorded]).complete, "an answer")
    cluster.cancel([recorded])
    wait_for(lambda: cluster.observe([recorded]).jobs["t-000001"].state is JobState.ENDED, "the end")


def test_a_job_that_no_look_has_shown_is_cancelled_by_its_name(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    cluster = SlurmCluster(SampleSweep(tmp_path, {}).definition.read_cluster(), tmp_path)
    ours, other = (slurm.hold_nodes(1, **{"job-name": name}) for name in ("t-000001", "t-000002"))
    cluster.cancel([JobIdentity("t-000001", time.time(), other)])
    wait_for(lambda: slurm.run("squeue", "-h", "-o", "%i").split() == [other], f"end of {ours} alone")


def test_a_cancelled_run_leaves_those_beside_it_to_go_on(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    plans: dict[str, Any] = {name: {"seconds": [300, 1]} for name in "abcd"}
    plans["e"] = {"seconds": [300, 1], "deaf": True}
    needs = {name: Need(1, 1, 1, 5.0, 0.1) for name in plans}
    whole = {**GPU, "partition": "whole", "cpus_per_node": 96, "whole_nodes": True}
    sweep = SampleSweep(tmp_path, plans, whole, needs=needs)
    asked: list[Tick] = []

    def on_tick(tick: Tick) -> None:
        if not asked and all(map(sweep.starts, plans)):
            asked.append(tick)
            sweep.folder.send("cancel", runs=["b"])

    state = sweep.run(on_tick)
    assert standings(state) == {**dict.fromkeys(plans, "done"), "b": "held"}
    assert causes(state, "b") == [Cause.CANCELLED]
    assert {name: causes(state, name) for name in "acde"} == {
        name: [Cause.CANCELLED_WITH_JOB, Cause.FINISHED] for name in "acde"
    }
    assert len({state.runs[name].attempts[0].tag for name in plans}) == 1
    check(sweep, state, slurm)
    sweep.folder.send("released", runs=["b"])
    assert set(standings(sweep.run()).values()) == {"done"}
