"""A node where runs are slower than their like elsewhere is said once and avoided; nothing else is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from state_values import values_of

from muloco_runner.record import RunFolder, RunStatus
from sweeps import controller as controller_module
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, QuotaConfig
from sweeps.engine.decide import AVOID_NODE_SECONDS
from sweeps.engine.outcome import Headway
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Need, Work
from sweeps.hydra_apps.job_adapter import HYDRA_JOB
from sweeps.node.reports import likeness, read_progress
from sweeps.simulation.faults import FaultModel
from sweeps.simulation.simulate import begin, play
from sweeps.simulation.simulated_cluster import SimulatedCluster
from sweeps.store.folder import SweepFolder
from sweeps.training.adapter import TRAINING

FOUR = [AllocationConfig("a", gpus_per_node=8, cpus_per_node=96, whole_nodes=True, quota=QuotaConfig(nodes=4))]
CLUSTER = ClusterConfig("c", "slurm", FOUR, slow_node_factor=2.0)
SLOW = "a002"


def works(models: Sequence[str], minutes: float = 60.0) -> list[Work]:
    need = Need(1, 8, 96, 600.0, minutes)
    return [Work(f"r{n}", f"/nowhere/r{n}", "m:f", need=need, labels={"model": m}) for n, m in enumerate(models)]


def played(root: Path, pieces: Sequence[Work], slow: Mapping[str, float], config: ClusterConfig = CLUSTER) -> Any:
    """The folder and the state at the end."""
    folder = SweepFolder(root, "s")
    cluster = SimulatedCluster(config, FaultModel(slow_nodes=slow), 4, 1.8e9)
    controller = begin(folder, pieces, cluster)
    folder.write_definition(controller.definition)
    play(controller, cluster, lambda tick, cluster: None, 1e12)
    assert controller.state.counts["done"] == len(pieces)
    return folder, controller.state


def started_on(state: SweepState, node: str) -> list[float]:
    attempts = [attempt for run in state.runs.values() for attempt in run.attempts if node in attempt.nodes]
    return sorted(attempt.started_at for attempt in attempts if attempt.started_at is not None)


def test_a_slow_node_is_said_once_and_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "SNAPSHOT_LINES", 10)
    folder, state = played(tmp_path, works(["small"] * 16), {SLOW: 3.0})
    ((node, seen),) = state.slow_nodes.items()
    assert node == SLOW
    assert seen.factor == pytest.approx(3.0)
    assert folder.ledger_file.read_text().count('"slow_node"') == 1
    # The run that was slow went on: none was tried twice.
    assert {len(run.attempts) for run in state.runs.values()} == {1}
    assert len(started_on(state, SLOW)) == 1
    # Replayed, from the snapshot and without, it is the same.
    definition = folder.read_definition()
    assert folder.snapshot_file.exists()
    assert values_of(folder.read_state(definition).state) == values_of(state)
    folder.snapshot_file.unlink()
    assert values_of(folder.read_state(definition).state) == values_of(state)


def test_after_six_hours_a_slow_node_is_tried_again(tmp_path: Path) -> None:
    folder, state = played(tmp_path, works(["small"] * 40), {SLOW: 3.0})
    assert folder.ledger_file.read_text().count('"slow_node"') == 2
    first, second = started_on(state, SLOW)
    assert AVOID_NODE_SECONDS < second - first < AVOID_NODE_SECONDS + 7200


@pytest.mark.parametrize(
    ("models", "slow", "factor"),
    [
        (["small"] * 12, {f"a00{n}": 3.0 for n in range(1, 5)}, 2.0),
        (["small"] * 12, {SLOW: 1.9}, 2.0),
        (["small"] * 12, {SLOW: 3.0}, None),
        (["small"], {"a001": 9.0}, 2.0),
        (["small"] * 3, {SLOW: 9.0}, 2.0),
        (["small", "large", "wide", "deep"], {SLOW: 9.0}, 2.0),
    ],
    ids=["slow everywhere", "hardly slow", "off", "one run", "too few runs", "different models"],
)
def test_nothing_else_is_a_slow_node(
    models: list[str], slow: dict[str, float], factor: float | None, tmp_path: Path
) -> None:
    _, state = played(tmp_path, works(models), slow, replace(CLUSTER, slow_node_factor=factor))
    assert state.slow_nodes == {}


def test_alike_are_runs_whose_steps_take_the_same_time(tmp_path: Path) -> None:
    first, lr, model = (Work(f"w{n}", str(tmp_path / f"w{n}"), "m:f", adapter=TRAINING) for n in range(3))
    assert likeness(first) is None
    config = {"seed": 0, "model": {"width": 8}, "inner_optimizer": {"lr": 0.1, "name": "muon"}}
    RunFolder(first.folder).write_config(config)
    RunFolder(lr.folder).write_config({**config, "seed": 1, "inner_optimizer": {"lr": 0.2, "name": "muon"}})
    RunFolder(model.folder).write_config({**config, "model": {"width": 9}})
    assert likeness(first) == likeness(lr) != likeness(model)
    jobs = [
        replace(first, adapter=HYDRA_JOB, labels={"opt.lr": lr, "net": net}) for lr, net in ((1, 1), (2, 1), (1, 2))
    ]
    assert likeness(jobs[0]) == likeness(jobs[1]) != likeness(jobs[2])


def test_headway_is_tokens_by_training_time_or_steps_by_the_clock(tmp_path: Path) -> None:
    status = RunStatus("r", "running", step=50, num_steps=200, tokens=5000, tokens_per_second=10.0)
    RunFolder(tmp_path).write_status(status)
    work = Work("r", str(tmp_path), "m:f", adapter=TRAINING)
    progress, of_job = read_progress(work), read_progress(replace(work, adapter=HYDRA_JOB))
    assert progress is not None
    assert of_job is not None
    assert of_job.heartbeat_at is not None
    assert progress.headway == Headway(5000, 500.0)
    assert of_job.headway == Headway(50, of_job.heartbeat_at)
