"""Drivers that are killed and schedulers that fall silent, on a real SLURM: nothing is lost, nothing runs twice."""

from __future__ import annotations

import random
import sys
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
    sampled_nodes,
    standings,
)

from sweeps.controller import Tick
from sweeps.engine.policy import Cause

pytestmark = pytest.mark.slurm
KILLS = 30


def test_a_driver_killed_thirty_times_loses_and_repeats_nothing(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    chance = random.Random(5)
    gate = tmp_path / "gate"
    plans: dict[str, Any] = {f"w{n:02d}": {"seconds": [0.5]} for n in range(48)}
    plans["w00"] = {"gate": str(gate)}
    sweep = SampleSweep(
        tmp_path, plans, {**GPU, "quota": {"nodes": 3}}, tick_seconds=0.1, submit_confirm_timeout_seconds=3.0
    )
    killed = dict.fromkeys(("at a line", "asking", "accepted"), 0)
    deaths: list[Callable[[], None]] = []
    for _ in range(KILLS):
        how = chance.choice(["at a line"] * 3 + ["asking", "accepted"])
        ways: dict[str, Callable[[], None]] = {
            "at a line": partial(die_at_line, chance.randrange(1, 12_000)),
            "asking": partial(die_around_sbatch, after=False),
            "accepted": partial(die_around_sbatch, after=True),
        }
        deaths.append(ways[how])
        killed[how] += 1
    with sampled_nodes(slurm) as samples:
        kill_drivers(sweep, deaths, later=list(plans)[12:])
        gate.touch()
        state = sweep.run()
    assert min(killed.values()) >= 3
    assert set(standings(state).values()) == {"done"}
    assert {name: len(sweep.starts(name)) for name in plans} == dict.fromkeys(plans, 1)
    assert max(samples) <= 3
    check(sweep, state, slurm)


def test_of_two_drivers_one_drives_and_a_third_takes_over(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    plans = {f"w{n}": {"gate": str(gate)} for n in range(4)}
    sweep = SampleSweep(tmp_path, plans, {**GPU, "quota": {"nodes": 2}})
    drivers = [sweep.start(sys.stderr.close) for _ in range(2)]
    wait_for(lambda: any(map(sweep.starts, plans)), "first run")
    wait_for(lambda: sum(driver.is_alive() for driver in drivers) == 1, "driver that stands back")
    (alive,) = [driver for driver in drivers if driver.is_alive()]
    alive.kill()
    alive.join()
    gate.touch()
    state = sweep.run()
    assert set(standings(state).values()) == {"done"}
    assert {len(sweep.starts(name)) for name in plans} == {1}
    check(sweep, state, slurm)


def test_a_slurmctld_that_is_away_for_a_while_changes_nothing(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    plans = {f"w{n}": {"seconds": [3]} for n in range(5)}
    sweep = SampleSweep(tmp_path, plans, {**GPU, "quota": {"nodes": 2}})
    silent: list[Tick] = []

    def interrupt(tick: Tick) -> None:
        if not silent and sweep.starts("w0"):
            slurm.stop_controller()
        if not tick.complete:
            silent.append(tick)
            if len(silent) == 2:
                # Both runs have ended by now, and nobody could be told.
                slurm.start_controller()

    state = sweep.run(interrupt)
    assert len(silent) >= 2
    assert set(standings(state).values()) == {"done"}
    assert {len(run.attempts) for run in state.runs.values()} == {1}
    check(sweep, state, slurm)


def test_nothing_is_submitted_while_the_queue_cannot_be_read(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    other = slurm.hold_nodes(1)
    slurm.wait_for_start(other)
    put_before(
        "squeue",
        """
        # The sweep's own question, which alone names a long format.
        if [[ "$*" == *--Format* ]] && mkdir $HERE/asked 2>/dev/null; then
          echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
          exit 1
        fi
        exec $REAL "$@"
        """,
        tmp_path / "bin",
    )
    sweep = SampleSweep(tmp_path, {f"w{n}": {"seconds": [3]} for n in range(3)}, {**GPU, "quota": {"nodes": 2}})
    submitted: list[int] = []
    with sampled_nodes(slurm) as samples:
        state = sweep.run(lambda tick: submitted.append(len(tick.state.jobs)))
    assert submitted[0] == 0
    assert max(samples) <= 2
    assert set(standings(state).values()) == {"done"}
    check(sweep, state, slurm)


def test_without_accounting_no_end_is_guessed(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    # A queue that forgets a job at its end, as a busy site's does soon: accounting alone can say how it ended.
    put_before("squeue", 'exec $REAL "${@/--states=all/--states=PD,R,CG,CF}"', tmp_path / "bin")
    gate = tmp_path / "gate"
    sweep = SampleSweep(
        tmp_path, {"fails": {"codes": [65]}, "fine": {"gate": str(gate)}}, submit_confirm_timeout_seconds=600.0
    )
    done: list[str] = []

    def watch(tick: Tick) -> None:
        if not done and sweep.starts("fine"):
            slurm.stop_database_daemon()
            done.append("stopped")
            gate.touch()
        elif len(done) == 1 and not tick.complete and (tmp_path / "runs" / "fine" / "result.json").exists():
            assert not tick.state.runs["fine"].done
            slurm.start_database_daemon()
            done.append("missed")

    state = sweep.run(watch)
    assert done == ["stopped", "missed"]
    assert standings(state) == {"fails": "held", "fine": "done"}
    assert causes(state, "fails") == [Cause.CONFIG_CANNOT_RUN]
    assert {len(run.attempts) for run in state.runs.values()} == {1}
    check(sweep, state, slurm)


@pytest.mark.parametrize("exists", [True, False], ids=["accepted", "lost"])
def test_after_a_lost_answer_of_sbatch_the_job_is_looked_for(
    slurm: EmulatedSlurm, tmp_path: Path, exists: bool
) -> None:
    put_before(
        "sbatch",
        f"""
        number=$(($(cat $HERE/count 2>/dev/null || echo 0) + 1)); echo $number > $HERE/count
        if [ $number != 2 ]; then exec $REAL "$@"; fi
        {'$REAL "$@" > /dev/null' if exists else ":"}
        echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
        exit 1
        """,
        tmp_path / "bin",
    )
    plans = {f"w{n}": {"seconds": [1]} for n in range(4)}
    sweep = SampleSweep(tmp_path, plans, {**GPU, "quota": {"nodes": 2}}, submit_confirm_timeout_seconds=3.0)
    state = sweep.run()
    assert set(standings(state).values()) == {"done"}
    assert {len(sweep.starts(name)) for name in plans} == {1}
    assert [event["why"] for event in sweep.events("refused")] == ([] if exists else ["it never reached the cluster"])
    check(sweep, state, slurm)
