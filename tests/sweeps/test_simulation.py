"""Whole sweeps in simulated time: whatever happens, quotas hold, nothing runs twice and every run comes to an end."""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muloco_runner.record import ExitCode
from sweeps.bound import lower_bound_minutes
from sweeps.clusters.simulated import FAIR, ROUGH, SimulatedCluster, Weather
from sweeps.config import AllocationConfig, ClusterConfig, QuotaConfig
from sweeps.controller import Controller, Tick
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.policy import Cause
from sweeps.simulation import begin, play, simulate
from sweeps.state import SweepState
from sweeps.work import Need, Work

HISTORIES = int(os.environ.get("MULOCO_HISTORIES", "120"))
"""As many random ones; 10,000 take some hours of one core."""
DAY = 86400.0
SHAPES = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8))


class Killed(BaseException):
    """kill -9, as the code under test sees it."""


@dataclass
class History:
    """What befalls a sweep."""

    works: list[Work]
    config: ClusterConfig
    weather: Weather
    kills: float
    """Share of the ledger's lines before or after which the controller dies."""
    new_quotas: dict[int, int]
    """Nodes of the first allocation, by the number of the tick."""


@st.composite
def histories(draw: st.DrawFn) -> History:
    rng = random.Random(draw(st.integers(0, 2**32)))
    quotas = [rng.randint(4, 12) for _ in range(draw(st.integers(1, 2)))]
    whole = draw(st.booleans())
    works = [
        Work(f"r{n}", f"/nowhere/r{n}", "m:f", need=Need(nodes, gpus, 12 * gpus, 0.0, rng.uniform(1, 300)))
        for n in range(draw(st.integers(1, draw(st.sampled_from([5, 50, 200])))))
        for nodes, gpus in [rng.choice(SHAPES)]
    ]
    allocations = [
        AllocationConfig(
            f"a{n}",
            gpus_per_node=8,
            cpus_per_node=96,
            whole_nodes=whole,
            quota=QuotaConfig(nodes=nodes, jobs=rng.choice([None, nodes, 3]), submitted_jobs=rng.choice([None, 5])),
        )
        for n, nodes in enumerate(quotas)
    ]
    mishaps = {name: draw(st.sampled_from([0.0, getattr(ROUGH, name), 3 * getattr(ROUGH, name)])) for name in _MISHAPS}
    weather = Weather(spread=0.3, seed=rng.randrange(2**32), **mishaps)
    new_quotas = {rng.randint(1, 200): rng.randint(4, 12) for _ in range(draw(st.integers(0, 3)))}
    kills = draw(st.sampled_from([0.0, 0.02, 0.1]))
    return History(works, ClusterConfig("c", "slurm", allocations), weather, kills, new_quotas)


_MISHAPS = [name for name in vars(ROUGH) if name not in ("spread", "seed")]


def live_nodes(cluster: SimulatedCluster, allocation: str) -> int:
    return sum(job.request.nodes for job in cluster.live() if job.request.allocation == allocation)


class Watcher:
    """Checks the quotas after each tick, by what the cluster holds and not by what the controller believes."""

    def __init__(self, history: History, folder: SweepFolder) -> None:
        self.history, self.folder, self.ticks = history, folder, 0
        self.most = {a.name: a.quota.nodes or 0 for a in history.config.allocations}
        self.held = dict.fromkeys(self.most, 0)

    def __call__(self, tick: Tick, cluster: SimulatedCluster) -> None:
        for allocation in self.history.config.allocations:
            nodes = live_nodes(cluster, allocation.name)
            # A quota that sinks below what runs takes nothing away, and lets nothing start.
            assert nodes <= max(self.most[allocation.name], self.held[allocation.name])
            self.held[allocation.name] = nodes
            if allocation.quota.submitted_jobs is not None:
                jobs = sum(job.request.allocation == allocation.name for job in cluster.live())
                assert jobs <= allocation.quota.submitted_jobs
        self.ticks += 1
        quota = self.history.new_quotas.get(self.ticks)
        if quota is not None:
            self.folder.send("own_limits", limits={"nodes": quota})
            self.most = dict.fromkeys(self.most, quota)


def play_with_kills(history: History, root: Path, monkeypatch: pytest.MonkeyPatch) -> SweepState:
    cluster = SimulatedCluster(history.config, history.weather, 12, 1.8e9)
    folder = SweepFolder(root, "s")
    watcher = Watcher(history, folder)
    luck = random.Random(history.weather.seed)
    whole = Ledger.append

    def append(self: Ledger, event: str, **values: Any) -> Any:
        if luck.random() < history.kills / 2:
            raise Killed
        line = whole(self, event, **values)
        if luck.random() < history.kills / 2:
            raise Killed
        return line

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", append)
        while True:
            controller = take_over(folder, history, cluster)
            try:
                play(controller, cluster, watcher, cluster.now + 3650 * DAY)
                return controller.state
            except Killed:
                cluster.advance(cluster.now + luck.choice([1.0, 60.0, 3600.0]))


def take_over(folder: SweepFolder, history: History, cluster: SimulatedCluster) -> Controller:
    """A controller as of another host: the one before it is dead."""
    for lease in folder.lease_dir.glob("[0-9]*"):
        lease.write_text(json.dumps({"host": "", "pid": 0, "started_at": 0.0}))
    return begin(folder, history.works, cluster)


@given(history=histories())
@settings(
    max_examples=HISTORIES,
    deadline=None,
    derandomize=HISTORIES < 1000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_whatever_happens_every_run_ends_once_and_quotas_hold(
    history: History, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # That nothing runs twice at once, or again after its end, the simulated cluster asserts itself.
    state = play_with_kills(history, tmp_path_factory.mktemp("history"), monkeypatch)
    for name, run in state.runs.items():
        assert run.done or run.held, name
    weather = history.weather
    may_fail = weather.crashes or weather.broken or weather.hangs or weather.node_failures_per_day
    if not may_fail and not weather.preemptions_per_day:
        assert state.counts["done"] == len(state.runs)


def study(num_runs: int) -> list[Work]:
    """Runs as the published study has them: many small, few wide, 1 to 64 GPUs."""
    rng = random.Random(0)
    kinds = [(1, 1, 90.0), (1, 4, 120.0), (1, 8, 200.0), (1, 8, 500.0), (2, 8, 400.0), (8, 8, 600.0)]
    chosen = rng.choices(kinds, [0.4, 0.25, 0.15, 0.1, 0.08, 0.02], k=num_runs)
    return [
        Work(f"r{n}", f"/nowhere/r{n}", "m:f", need=Need(nodes, gpus, 12 * gpus, 0.0, minutes * rng.uniform(0.5, 2)))
        for n, (nodes, gpus, minutes) in enumerate(chosen)
    ]


SIXTEEN = ClusterConfig(
    "c",
    "slurm",
    [AllocationConfig("a", gpus_per_node=8, cpus_per_node=96, whole_nodes=True, quota=QuotaConfig(nodes=16))],
)


@pytest.mark.parametrize("weather", [Weather(), FAIR])
def test_the_published_study_comes_within_five_percent_of_the_lower_bound(weather: Weather) -> None:
    outcome = simulate(study(2200), SIXTEEN, weather)
    assert outcome.state.counts["done"] == 2200
    assert outcome.lower_bound_minutes is not None
    assert outcome.makespan_minutes < 1.05 * outcome.lower_bound_minutes
    if weather == Weather():
        assert outcome.makespan_minutes >= outcome.lower_bound_minutes


def test_a_rough_cluster_costs_retries_and_loses_no_run() -> None:
    outcome = simulate(study(300), SIXTEEN, ROUGH)
    done, held = outcome.state.counts["done"], outcome.state.counts["held"]
    assert done + held == 300
    assert done > 280
    for cause in (Cause.NODE_FAILURE, Cause.PREEMPTED, Cause.CRASH, Cause.OUT_OF_MEMORY):
        assert outcome.attempts[cause.value], cause


def test_the_lower_bound_is_the_work_or_the_longest_run() -> None:
    works = [Work(f"r{n}", f"/nowhere/r{n}", "m:f", need=Need(1, 4, 48, 0.0, 60.0)) for n in range(64)]
    assert lower_bound_minutes(works, SIXTEEN) == 64 * 60 / 2 / 16
    works.append(Work("long", "/nowhere/long", "m:f", need=Need(1, 8, 96, 0.0, 500.0)))
    assert lower_bound_minutes(works, SIXTEEN) == 500.0


def test_the_command_says_how_it_went(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.__main__ import main

    words = ["muloco-sweep", "simulate", "+sweep=demo", "cluster=h100", "model=29k", "--weather", "calm", "--json"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitCode.FINISHED
    said = json.loads(capsys.readouterr().out)
    assert said["runs"]["done"] == said["attempts"]["finished"] > 0
    assert said["makespan_minutes"] >= said["lower_bound_minutes"]
