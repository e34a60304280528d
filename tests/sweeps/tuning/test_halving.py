"""`halve`: what it stops, what it never stops, and a sweep that is killed anywhere with it."""

import math
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from killed_controllers import Killed, assert_snapshot_equals_ledger, kill_at_ledger_lines, take_for_dead
from planted_surfaces import group_of
from state_values import values_of

from sweeps import controller as controller_module
from sweeps.cli.explain import explain
from sweeps.cli.study_lines import saved_hours, study_lines
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, QuotaConfig
from sweeps.engine.policy import Cause
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.tuning.growth import Growth
from sweeps.engine.tuning.halving import END, Curve, HalveRule, why_hopeless
from sweeps.engine.tuning.study import Place, Setting, Study
from sweeps.engine.work import Adapter, Need, Work
from sweeps.simulation.faults import FaultModel
from sweeps.simulation.simulate import begin, play, simulate
from sweeps.simulation.simulated_cluster import SimulatedCluster
from sweeps.simulation.surface import PlantedTrials, Surface
from sweeps.store.folder import SweepFolder

SURFACES = int(os.environ.get("MULOCO_SURFACES", "100"))
RULE = HalveRule()


def test_rungs_are_powers_of_eta_from_the_first_share_on() -> None:
    assert RULE.rungs == ("0.25", "0.5")
    assert HalveRule(eta=3, first_share=0.1).rungs == ("0.111111", "0.333333")


def curves_of(draw: random.Random, num_runs: int) -> list[Curve]:
    """Curves that cross: gains from any share on differ by up to the rule's factor."""
    return [
        {share: end + gain * (1 / math.sqrt(float(share)) - 1) for share in (*RULE.rungs, END)}
        for end, gain in ((3 + draw.expovariate(2), draw.uniform(0.3, 0.6)) for _ in range(num_runs))
    ]


def test_a_planted_winner_is_never_stopped() -> None:
    stopped = 0
    for seed in range(SURFACES):
        draw = random.Random(seed)
        whole = curves_of(draw, draw.randint(2, 12))
        winner = min(range(len(whole)), key=lambda one: whole[one][END])
        # In any order in which their rungs may come.
        order = [one for one in range(len(whole)) for _ in whole[one]]
        draw.shuffle(order)
        seen: dict[str, dict[str, float]] = {}
        ended: set[int] = set()
        for one in order:
            if one in ended:
                continue
            known = seen.setdefault(str(one), {})
            share = [*RULE.rungs, END][len(known)]
            known[share] = whole[one][share]
            hopeless = {int(name) for name in seen if int(name) not in ended and why_hopeless(name, seen, RULE)}
            assert winner not in hopeless, seed
            ended |= hopeless
        stopped += len(ended)
    assert stopped > SURFACES / 2


def curve(*losses: float) -> Curve:
    return dict(zip((*RULE.rungs, END), losses, strict=False))


def test_only_what_is_both_behind_and_out_of_reach_is_stopped() -> None:
    finished = {"a": curve(3.5, 3.2, 3.0), "b": curve(3.6, 3.3, 3.1)}
    # From .5 on both have gained .2, so that .4 are thought possible.
    assert why_hopeless("x", {**finished, "x": curve(3.9, 3.39)}, RULE) is None
    why = why_hopeless("x", {**finished, "x": curve(3.9, 3.41)}, RULE)
    assert why == (
        "at 50% of its tokens its training loss was 3.4100; to end at 3.0000, the lowest of 2 that have finished, it "
        "would have to gain more than 2 times the 0.2000 that any of them gained from there on"
    )
    # Too few have finished, or it has, or it is among the best half that has come so far.
    assert why_hopeless("x", {"a": finished["a"], "x": curve(9.0, 9.0)}, RULE) is None
    assert why_hopeless("x", {**finished, "x": curve(9.0, 9.0, 9.0)}, RULE) is None
    behind = {name: curve(9.9, 9.9) for name in "cdef"}
    assert why_hopeless("x", {**finished, **behind, "x": curve(9.0, 9.0)}, RULE) is None


CLUSTER = ClusterConfig(
    "c", "slurm", [AllocationConfig("a", gpus_per_node=8, cpus_per_node=96, quota=QuotaConfig(nodes=3))]
)
RATES = (24, 26, 28, 29, 30, 31, 32, 34, 36)


def study(**rules: Any) -> Study:
    group = replace(group_of(), batches=replace(group_of().batches, grows=False))
    places = {f"{batch}-{rate}": Place("g", Setting(batch, (rate,)), 0) for batch in (29, 30) for rate in RATES}
    return Study((group,), places, halve=RULE, **rules)


def works_of(given: Study) -> list[Work]:
    adapter, need = Adapter(speaks_exit_codes=True), Need(1, 8, 8, 0.0, 60.0)
    return [Work(name, f"/nowhere/{name}", "m:f", need=need, adapter=adapter) for name in given.places]


def trials_of(given: Study) -> PlantedTrials:
    trials = PlantedTrials(given, 5)
    trials.surfaces["g"] = Surface(1, (30.0,), 30.0, 0.0, 0.02, 0.006, 0.0, math.inf, 0.0004)
    return trials


def assert_best_is_kept_and_the_rest_is_stopped(state: SweepState, given: Study) -> None:
    assert state.is_over
    assert state.counts["stopped"] >= 4
    assert state.num_with_result == len(state.runs)
    growth = Growth(given)
    growth.additions(state)
    stopped = {name for name in state.runs if state.runs[name].status == "stopped"}
    assert "30-30" not in stopped
    for name in stopped:
        causes = [attempt.cause for attempt in state.runs[name].attempts]
        assert causes.count(Cause.HALVED) == 1
        assert causes[-1] is Cause.HALVED
        assert "it would have to gain more than 2 times" in state.stopped[name]
        assert name not in state.losses


def test_hopeless_runs_stop_and_are_a_result_of_their_own() -> None:
    given = study()
    state = simulate(works_of(given), CLUSTER, FaultModel(), trials=trials_of(given)).state
    assert_best_is_kept_and_the_rest_is_stopped(state, given)
    assert not state.counters.held
    assert not state.failed
    processor, hours = saved_hours(state)
    # Of an hour on eight GPUs each at least half was left.
    assert processor == "GPU"
    assert 4 * state.counts["stopped"] * 0.9 <= hours <= 8 * state.counts["stopped"]
    run = state.runs[next(iter(state.stopped))]
    story = explain(run, "", "", 2e9, 1440, 1, "ROOT")
    assert any(f"stopped early: {state.stopped[run.work.name]}" in line for line in story)
    assert story[-2:] == [
        "That is its result: it is not tried again by itself. To let it go on to its end:",
        f"  muloco-sweep retry ROOT run={run.work.name}",
    ]
    lines = list(study_lines(given, state))
    assert lines[0] == "MuLoCo: all of its runs have ended; nothing added"
    assert lines[-1] == f"{state.counts['stopped']} runs stopped early: about {hours:,.2f} GPU-hours saved"


def test_off_by_default_nothing_is_stopped() -> None:
    given = replace(study(), halve=None)
    state = simulate(works_of(given), CLUSTER, FaultModel(), trials=trials_of(given)).state
    assert state.counts["done"] == len(state.runs)
    assert not state.rungs


def test_killed_anywhere_a_sweep_stops_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = study()
    cluster, folder = SimulatedCluster(CLUSTER, FaultModel(), 3, 1.8e9), SweepFolder(tmp_path, "s")
    kill_at_ledger_lines(monkeypatch, random.Random(2), 0.03)
    monkeypatch.setattr(controller_module, "SNAPSHOT_LINES", 7)
    kills = 0
    while True:
        take_for_dead(folder)
        controller = begin(folder, works_of(given), cluster, trials_of(given))
        assert_snapshot_equals_ledger(controller)
        try:
            play(controller, cluster, lambda tick, cluster: None, 1e12)
            break
        except Killed:
            kills += 1
            cluster.world.advance(cluster.world.now + 60)
    assert kills > 3
    assert_best_is_kept_and_the_rest_is_stopped(controller.state, given)


def test_a_stopped_run_that_is_retried_goes_on_to_its_end(tmp_path: Path) -> None:
    given = study()
    cluster, folder = SimulatedCluster(CLUSTER, FaultModel(), 3, 1.8e9), SweepFolder(tmp_path, "s")
    controller = begin(folder, works_of(given), cluster, trials_of(given))
    play(controller, cluster, lambda tick, cluster: None, 1e12)
    named = next(iter(controller.state.stopped))
    folder.send("released", runs=[named])
    play(controller, cluster, lambda tick, cluster: None, 1e12)
    assert controller.state.runs[named].status == "done"
    growth = Growth(given)
    growth.additions(controller.state)
    assert controller.state.losses[named] == pytest.approx(
        trials_of(given).final_loss(controller.state.runs[named].work)
    )
    assert values_of(controller.state) == values_of(folder.read_state(controller.definition).state)
