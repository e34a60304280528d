"""What happens to jobs on a real SLURM, case by case: no run is lost or runs twice, and each ends where it should."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from emulated_slurm import OTHER_USER, EmulatedSlurm
from sweeping import GPU, ONE_NODE, SampleSweep, causes, check, sampled_nodes, standings

from sweeps.clusters.slurm import slurm_cluster
from sweeps.controller import Tick
from sweeps.engine.cluster import Resource
from sweeps.engine.policy import RULES, Cause
from sweeps.engine.quota import VerdictKind, held_by_jobs
from sweeps.engine.sweep_state import shape_of
from sweeps.engine.work import Need

pytestmark = pytest.mark.slurm
HEARTBEAT_TIMEOUT_SECONDS = 15.0
"""Far longer than between two heartbeats, however busy the machine is."""
CANCEL_OTHERS = ("scancel", f"--user={OTHER_USER}")


class Script:
    """Acts in turn, each at the first tick at which its condition holds after the one before it."""

    def __init__(self, *steps: tuple[Callable[[Tick], Any], Callable[[], Any]]) -> None:
        self.left = list(steps)
        self.ticks: list[Tick] = []

    def __call__(self, tick: Tick) -> None:
        self.ticks.append(tick)
        if self.left and self.left[0][0](tick):
            _, act = self.left.pop(0)
            act()


def first_job(slurm: EmulatedSlurm, sweep: SampleSweep) -> str:
    """The id of the sweep's first job."""
    return slurm.run("squeue", "-h", f"--name={sweep.folder.tag_prefix}000001", "-o", "%i").strip()


def test_causes_are_true_and_accounting_agrees(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    sweep = SampleSweep(tmp_path, {"wrong": {"codes": [65]}, "large": {"codes": [70, 0]}, "fine": {}})
    state = sweep.run()
    assert standings(state) == {"wrong": "held", "large": "done", "fine": "done"}
    assert causes(state, "wrong") == [Cause.CONFIG_CANNOT_RUN]
    assert causes(state, "large") == [Cause.OUT_OF_MEMORY, Cause.FINISHED]
    check(sweep, state, slurm)


def test_memory_grows_from_too_little_to_enough(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    gpu = {**GPU, "memory_gigabytes": 2, "max_memory_gigabytes": 7}
    sweep = SampleSweep(tmp_path, {"grows": {"needs_gigabytes": 6}, "never": {"needs_gigabytes": 9}, "fine": {}}, gpu)
    state = sweep.run()
    assert standings(state) == {"grows": "done", "never": "held", "fine": "done"}
    out = Cause.OUT_OF_HOST_MEMORY
    assert {name: causes(state, name) for name in ("grows", "never")} == {
        "grows": [out, out, Cause.FINISHED],
        # The third had all that it may have.
        "never": [out] * 3,
    }
    assert "max_memory_gigabytes" in (state.runs["never"].held or "")
    check(sweep, state, slurm)
    for name in ("grows", "never"):
        tags = [attempt.tag for attempt in state.runs[name].attempts]
        asked = [slurm.run("sacct", "-nPX", f"--name={tag}", "-o", "ReqMem").strip() for tag in tags]
        assert asked == ["2G", "4G", "7G"]


def test_a_job_that_runs_into_its_time_limit_gets_more_time(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    sweep = SampleSweep(tmp_path, {"slow": {"seconds": [300, 0], "deaf": True}, "fine": {}})

    def expire() -> None:
        slurm.end_time(first_job(slurm, sweep))

    state = sweep.run(Script((lambda tick: sweep.starts("slow"), expire)))
    assert standings(state) == {"slow": "done", "fine": "done"}
    assert causes(state, "slow") == [Cause.TIMEOUT, Cause.FINISHED]
    check(sweep, state, slurm)
    second = state.runs["slow"].attempts[-1].tag
    assert slurm.run("sacct", "-nPX", f"--name={second}", "-o", "TimelimitRaw").strip() == "120"


def test_preempted_runs_go_on_when_there_is_room_again(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    plans = {"polite": {"seconds": [300, 0]}, "deaf": {"seconds": [300, 0], "deaf": True}}
    sweep = SampleSweep(tmp_path, plans, {**GPU, "qos": "low"})
    script = Script(
        (lambda tick: all(map(sweep.starts, plans)), lambda: slurm.occupy(8, qos="high")),
        (lambda tick: all(causes(tick.state, name)[0] for name in plans), lambda: slurm.run(*CANCEL_OTHERS)),
    )
    state = sweep.run(script)
    assert set(standings(state).values()) == {"done"}
    assert {name: causes(state, name) for name in plans} == {name: [Cause.PREEMPTED, Cause.FINISHED] for name in plans}
    check(sweep, state, slurm)


def test_what_a_person_cancels_is_held_and_retry_goes_on(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    plans = {"polite": {"seconds": [300, 0]}, "fine": {"seconds": [3]}}
    sweep = SampleSweep(tmp_path, plans)
    script = Script((lambda tick: sweep.starts("polite"), lambda: slurm.run("scancel", first_job(slurm, sweep))))
    state = sweep.run(script)
    assert standings(state) == {"polite": "held", "fine": "done"}
    assert causes(state, "polite") == [Cause.CANCELLED_OUTSIDE]
    assert "not by this sweep" in str(state.runs["polite"].held)
    check(sweep, state, slurm)
    sweep.folder.send("released", runs=["polite"])
    state = sweep.run()
    assert standings(state) == dict.fromkeys(plans, "done")
    check(sweep, state, slurm)


def test_a_run_that_lost_its_node_goes_on_on_another(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    sweep = SampleSweep(tmp_path, {"unlucky": {"seconds": [300, 0]}, "fine": {"seconds": [3]}})
    lost: list[str] = []

    def lose() -> None:
        lost.append(sweep.wait_for_start("unlucky"))
        slurm.lose_node(lost[0])
        slurm.declare_down(lost[0])

    state = sweep.run(Script((lambda tick: sweep.starts("unlucky"), lose)))
    assert set(standings(state).values()) == {"done"}
    assert causes(state, "unlucky") == [Cause.NODE_FAILURE, Cause.FINISHED]
    assert sweep.wait_for_start("unlucky", 2) not in lost
    check(sweep, state, slurm)


def test_a_run_on_a_full_disk_waits_alone_until_there_is_room(
    slurm: EmulatedSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = replace(RULES[Cause.DISK_FULL], backoff_seconds=1.0)
    monkeypatch.setitem(RULES, Cause.DISK_FULL, rule)
    sweep = SampleSweep(tmp_path, {"full": {"kilobytes": 512}, "fine": {"kilobytes": 512}})
    place = tmp_path / "runs" / "full"
    place.mkdir(parents=True)
    slurm.run("mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place))
    try:
        script = Script(
            (
                lambda tick: len(tick.state.runs["full"].attempts) >= 3 and tick.state.runs["fine"].done,
                lambda: slurm.run("mount", "-o", "remount,size=4m", str(place)),
            )
        )
        state = sweep.run(script)
        assert set(standings(state).values()) == {"done"}
        assert causes(state, "full")[:2] == [Cause.DISK_FULL] * 2
        assert f"its folder is in {place}, where " in state.runs["full"].attempts[0].detail
        assert "No space left" in state.runs["full"].attempts[0].detail
        check(sweep, state, slurm)
    finally:
        slurm.run("umount", "--lazy", str(place))


def test_clocks_of_nodes_that_disagree_change_nothing(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    assert library is not None, "apt-get install faketime"
    odd_nodes = "|".join(slurm.nodes[::2])
    setup = [
        f"export LD_PRELOAD={library} NO_FAKE_STAT=1",
        f'case "$SLURMD_NODENAME" in {odd_nodes}) export FAKETIME=+7200 ;; *) export FAKETIME=-7200 ;; esac',
    ]
    gate = tmp_path / "gate"
    plans: dict[str, Any] = {f"w{n}": {"seconds": [1]} for n in range(8)}
    plans["w0"] = {"gate": str(gate)}
    sweep = SampleSweep(tmp_path, plans, setup=setup, heartbeat_timeout_minutes=HEARTBEAT_TIMEOUT_SECONDS / 60)
    seen_since: list[float] = []

    def look(tick: Tick) -> None:
        # Only of a run that has been at work for as long is it asked whether it hangs.
        if tick.state.runs["w0"].status == "running":
            seen_since.append(time.monotonic())
            if seen_since[-1] - seen_since[0] > 1.2 * HEARTBEAT_TIMEOUT_SECONDS:
                gate.touch()

    state = sweep.run(look)
    assert set(standings(state).values()) == {"done"}
    check(sweep, state, slurm)
    seen = [start["time"] for name in plans for start in sweep.starts(name)]
    assert max(seen) - min(seen) > 2 * 7200 - 60, "the nodes' clocks do disagree"
    assert {len(run.attempts) for run in state.runs.values()} == {1}
    tags = ",".join(run.attempts[0].tag for run in state.runs.values())
    seconds = sum(map(int, slurm.run("sacct", "-nPX", f"--name={tags}", "-o", "ElapsedRaw").split()))
    assert sum(state.spent_gpu_hours.values()) == pytest.approx(8 * seconds / 3600, abs=8 * 8 * 5 / 3600)


def test_a_run_that_can_never_fit_says_so_and_keeps_no_other_back(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    needs = {"wide": Need(9, 8, 8, 5.0, 0.1), "fine": ONE_NODE}
    sweep = SampleSweep(tmp_path, {"wide": {}, "fine": {}}, needs=needs)
    script = Script()
    state = sweep.run(script)
    assert standings(state) == {"wide": "waiting", "fine": "done"}
    assert script.ticks[-1].plan.unschedulable
    verdict = script.ticks[-1].plan.verdict_of(state.runs["wide"])
    assert verdict is not None
    assert verdict.kind is VerdictKind.NEVER
    assert "TotalNodes=8" in verdict.why
    assert "asks 9" in verdict.why
    assert not state.runs["wide"].attempts
    check(sweep, state, slurm)


def test_a_qos_lowered_while_the_sweep_runs_is_kept(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    slurm.limit(GrpTRES="node=3")
    plans: dict[str, Any] = {"wide": {"seconds": [1]}, **{f"w{n}": {"seconds": [4]} for n in range(5)}}
    needs = {"wide": Need(2, 8, 8, 5.0, 0.1)}
    sweep = SampleSweep(tmp_path, plans, {**GPU, "qos": "capped"}, needs=needs)
    # The wide run is submitted and cannot start: a job of another user holds all nodes but one.
    slurm.occupy(7)
    script = Script(
        (lambda tick: tick.state.runs["wide"].in_flight, lambda: slurm.limit(GrpTRES="node=1")),
        (lambda tick: tick.state.runs["wide"].is_waiting, lambda: slurm.run(*CANCEL_OTHERS)),
    )
    with sampled_nodes(slurm, 0.5) as samples:
        state = sweep.run(script)
    assert standings(state) == {"wide": "waiting", **{f"w{n}": "done" for n in range(5)}}
    verdict = script.ticks[-1].plan.verdicts[shape_of(state.runs["wide"].work)]
    assert verdict.kind is VerdictKind.NEVER
    assert "QOS capped GrpTRES node=1" in verdict.why
    assert max(samples) <= 1
    assert not state.runs["wide"].attempts, "cancelled while it was pending"
    check(sweep, state, slurm)
    slurm.limit(GrpTRES="node=2")
    state = sweep.run()
    assert set(standings(state).values()) == {"done"}
    check(sweep, state, slurm)


def test_a_submit_limit_defers_and_fails_nothing(
    slurm: EmulatedSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before the next look at the limits: only the refusal itself can tell.
    monkeypatch.setattr(slurm_cluster, "_TICKS_PER_LIMITS", 1e6)
    gate = tmp_path / "gate"
    plans = {f"w{n}": {"gate": str(gate)} for n in range(4)}
    sweep = SampleSweep(tmp_path, plans, {**GPU, "qos": "capped", "quota": {"nodes": 1}})

    def refuse() -> None:
        slurm.limit(MaxSubmitJobsPerUser="1")
        sweep.folder.send("own_limits", limits={"nodes": 5})

    state = sweep.run(
        Script((lambda tick: tick.state.jobs, refuse), (lambda tick: sweep.events("deferred"), gate.touch))
    )
    assert set(standings(state).values()) == {"done"}
    assert {len(run.attempts) for run in state.runs.values()} == {1}
    (first, *_) = sweep.events("deferred")
    assert "QOSMaxSubmitJobPerUserLimit" in first["why"]
    check(sweep, state, slurm)


def test_packed_runs_have_their_own_gpus_and_fail_apart(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    gpus = {"a": 1, "b": 1, "c": 2, "d": 4, "e": 1}
    plans: dict[str, Any] = {name: {"seconds": [2]} for name in gpus}
    plans["c"] = {"codes": [65]}
    needs = {name: Need(1, number, number, 5.0, 0.1) for name, number in gpus.items()}
    whole = {**GPU, "partition": "whole", "cpus_per_node": 96, "whole_nodes": True}
    sweep = SampleSweep(tmp_path, plans, whole, needs=needs)
    state = sweep.run()
    assert standings(state) == {**dict.fromkeys(gpus, "done"), "c": "held"}
    (first, *others) = {attempt.tag for run in state.runs.values() for attempt in run.attempts}
    seen = {name: sweep.starts(name)[0]["gpus"].split(",") for name in gpus}
    assert {name: len(numbers) for name, numbers in seen.items()} == gpus
    together = [number for name in "abcd" for number in seen[name]]
    assert sorted(together) == [str(number) for number in range(8)]
    assert len({first, *others}) == 2, "eight GPUs for four runs, and a second node for the fifth"
    check(sweep, state, slurm)


def test_quotas_of_two_allocations_are_kept_and_may_change(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    # The first four end at once; the others hold their nodes until the raised quota is used.
    gate = tmp_path / "gate"
    plans: dict[str, Any] = {f"w{n}": {"seconds": [2]} if n < 4 else {"gate": str(gate)} for n in range(10)}
    low = {**GPU, "name": "low", "qos": "low", "quota": {"nodes": 1}}
    short = {**GPU, "name": "short", "quota": {"nodes": 1, "gpu_hours": 8.0}}
    sweep = SampleSweep(tmp_path, plans, low, short)
    most = {"low": 0, "short": 0}
    act = Script(
        (lambda tick: tick.state.counts["done"] >= 4, lambda: sweep.folder.send("own_limits", limits={"nodes": 3})),
        (lambda tick: most["low"] >= 3, gate.touch),
    )

    def look(tick: Tick) -> None:
        for allocation, before in most.items():
            jobs = [job for job in tick.state.jobs.values() if job.request.allocation == allocation]
            most[allocation] = max(before, int(held_by_jobs(jobs).of.get(Resource.NODES, 0)))
        act(tick)

    state = sweep.run(look)
    assert set(standings(state).values()) == {"done"}
    # A job of one hour asks for all the GPU-hours of `short`: one at a time, whatever its nodes.
    assert most == {"low": 3, "short": 1}
    check(sweep, state, slurm)


def test_under_a_lowered_quota_jobs_that_wait_are_taken_back(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    plans = {name: {"seconds": [2]} for name in ("a", "b", "c")}
    slurm.occupy(8)
    sweep = SampleSweep(tmp_path, plans, {**GPU, "quota": {"nodes": 3}})
    script = Script(
        (lambda tick: len(tick.state.jobs) == 3, lambda: sweep.folder.send("own_limits", limits={"nodes": 1})),
        # One may be queued behind the other, and so waits for no node of its own.
        (
            lambda tick: sum(not job.is_behind for job in tick.state.jobs.values()) == 1,
            lambda: slurm.run(*CANCEL_OTHERS),
        ),
    )
    with sampled_nodes(slurm, 0.3) as samples:
        state = sweep.run(script)
    assert set(standings(state).values()) == {"done"}
    assert max(samples) == 1
    assert {len(run.attempts) for run in state.runs.values()} == {1}
    check(sweep, state, slurm)
