"""A sweep that goes on by its results, played by the real controller: killed anywhere it adds nothing twice."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from killed_controllers import Killed, assert_snapshot_equals_ledger, kill_at_ledger_lines, take_for_dead
from planted_surfaces import group_of, seed_grid

from muloco_runner.config import ConfigError
from sweeps import controller as controller_module
from sweeps.engine.capacity import MAX_GPU_HOURS
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, QuotaConfig
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.tuning.study import BATCH, Axis, ExtendRule, Group, Place, Study, TuneRule
from sweeps.engine.work import Adapter, Need, Work
from sweeps.simulation.faults import FaultModel
from sweeps.simulation.simulate import begin, play, simulate
from sweeps.simulation.simulated_cluster import SimulatedCluster
from sweeps.simulation.surface import PlantedTrials
from sweeps.store.folder import SweepFolder

CLUSTER = ClusterConfig(
    "c", "slurm", [AllocationConfig("a", gpus_per_node=8, cpus_per_node=96, quota=QuotaConfig(nodes=3))]
)


def study(rule: ExtendRule | None = None, seeds: tuple[int, ...] = (0,)) -> Study:
    whole = group_of()
    groups = [Group(name, name, whole.batches, whole.axes, seeds) for name in ("DiLoCo at 1m", "MuLoCo at 1m")]
    places = {
        f"{group.id[0]}-{setting.batch}-{setting.at[0]}-{seed}": Place(group.id, setting, seed)
        for group in groups
        for setting in seed_grid(group)
        for seed in seeds
    }
    return Study(tuple(groups), places, rule or ExtendRule())


def works_of(given: Study) -> list[Work]:
    adapter, need = Adapter(speaks_exit_codes=True), Need(1, 8, 8, 0.0, 10.0)
    return [Work(name, f"/nowhere/{name}", "m:f", need=need, adapter=adapter) for name in given.places]


def played_with_kills(given: Study, root: Path, share: float, monkeypatch: pytest.MonkeyPatch) -> SweepState:
    """The state at the end, of a sweep whose controller dies before or after that share of the ledger's lines."""
    cluster, folder, luck = SimulatedCluster(CLUSTER, FaultModel(), 3, 1.8e9), SweepFolder(root, "s"), random.Random(1)
    kill_at_ledger_lines(monkeypatch, luck, share)
    monkeypatch.setattr(controller_module, "SNAPSHOT_LINES", 7)
    while True:
        take_for_dead(folder)
        trials = PlantedTrials(given, 5)
        controller = begin(folder, works_of(given), cluster, trials)
        for added in controller.state.added.values():
            place = given.place_of(added.at)
            assert place is not None
            trials.learn(place)
        assert_snapshot_equals_ledger(controller)
        try:
            play(controller, cluster, lambda tick, cluster: None, 1e12)
            return controller.state
        except Killed:
            cluster.world.advance(cluster.world.now + 60)


def test_killed_anywhere_a_sweep_adds_what_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = study()
    with monkeypatch.context() as patch:
        calm = played_with_kills(given, tmp_path / "calm", 0.0, patch)
    with monkeypatch.context() as patch:
        rough = played_with_kills(given, tmp_path / "rough", 0.03, patch)
    assert len(calm.added) > 10
    assert calm.added == rough.added
    assert calm.counts["done"] == len(calm.runs) == len(given.places) + len(calm.added)
    assert rough.counts == calm.counts


def test_a_group_takes_up_no_more_than_its_rule_lets_it() -> None:
    given = study(ExtendRule(max_runs=4))
    outcome = simulate(works_of(given), CLUSTER, FaultModel(), trials=PlantedTrials(given, 5))
    assert 4 < len(outcome.state.added) <= 8


def test_a_walk_over_coordinates_is_the_same_whatever_befalls_its_runs() -> None:
    given = replace(study(), extend=None, tune=TuneRule(0.002))
    calm, rough = (
        simulate(works_of(given), CLUSTER, faults, trials=PlantedTrials(given, 5)).state
        for faults in (FaultModel(), FaultModel(seed=3, preemptions_per_day=40, spread=0.5, crashes=0.05))
    )
    assert rough.counters.resubmitted > 3
    assert len(calm.added) > 5
    assert sorted(map(str, calm.added.values())) == sorted(map(str, rough.added.values()))


def test_added_runs_count_against_the_cap_on_gpu_hours(tmp_path: Path) -> None:
    given = study()
    cluster, folder = SimulatedCluster(CLUSTER, FaultModel(), 3, 1.8e9), SweepFolder(tmp_path, "s")
    controller = begin(folder, works_of(given), cluster, PlantedTrials(given, 5))
    hours = sum(work.need.gpus * work.need.expected_minutes / 60 for work in works_of(given)) + 8 * 5
    controller.set_limits({MAX_GPU_HOURS: hours})
    play(controller, cluster, lambda tick, cluster: None, 1e12)
    assert controller.state.added
    assert controller.state.counts["waiting"]
    assert sum(controller.state.spent_gpu_hours.values()) <= hours


def test_new_settings_are_run_with_the_seeds_of_the_file() -> None:
    given = study(seeds=(3, 4))
    state = simulate(works_of(given), CLUSTER, FaultModel(), trials=PlantedTrials(given, 5)).state
    seeds: dict[str, set[int]] = {}
    for one in state.added.values():
        seeds.setdefault(json.dumps([one.at.group, one.at.values]), set()).add(one.at.seed)
    assert set(map(frozenset, seeds.values())) == {frozenset({3, 4})}


def test_what_no_run_can_be_made_of_is_said_and_stops_its_group() -> None:
    class Refusing(PlantedTrials):
        def derived_work(self, module: str, like: Work, values: Any, config: ClusterConfig) -> Work:
            if like.name.startswith("D"):
                raise ConfigError("fits on no GPUs")
            return super().derived_work(module, like, values, config)

    given = study()
    state = simulate(works_of(given), CLUSTER, FaultModel(), trials=Refusing(given, 5)).state
    assert state.blocked == {"DiLoCo at 1m": "fits on no GPUs"}
    assert {one.at.group for one in state.added.values()} == {"MuLoCo at 1m"}


def test_what_stood_in_a_groups_way_is_tried_again_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class DiskFull(PlantedTrials):
        def derived_work(self, module: str, like: Work, values: Any, config: ClusterConfig) -> Work:
            raise ConfigError("No space left on device")

    given = study()
    cluster, folder = SimulatedCluster(CLUSTER, FaultModel(), 3, 1.8e9), SweepFolder(tmp_path, "s")
    controller = begin(folder, works_of(given), cluster, DiskFull(given, 5))
    play(controller, cluster, lambda tick, cluster: None, 1e12)
    assert controller.state.is_over
    assert len(controller.state.blocked) == 2
    take_for_dead(folder)
    monkeypatch.setattr(controller_module, "keep_source", lambda root: "")
    controller = begin(folder, works_of(given), cluster, PlantedTrials(given, 5))
    controller._begin()
    assert not controller.state.blocked
    assert {one.at.group for one in controller.state.added.values()} == {group.id for group in given.groups}


def test_a_value_keeps_its_place_where_bounds_have_moved() -> None:
    given = study()
    place = Place(given.groups[0].id, next(iter(given.places.values())).setting, 0)
    at = given.coordinates_of(place)
    (rates,) = given.groups[0].axes
    fewer = Axis(rates.key, rates.values[20:], rates.first - 20, rates.last - 20)
    moved = Study((Group(place.group, "", given.groups[0].batches, (fewer,), (0,)),))
    found = moved.place_of(at)
    assert found is not None
    assert moved.coordinates_of(found) == at
    assert found.setting.at == (place.setting.at[0] - 20,)
    assert moved.place_of(at._replace(values={BATCH: at.values[BATCH], rates.key: rates.values[3]})) is None
