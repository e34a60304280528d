"""Whole sweeps in simulated time: whatever happens, quotas hold, nothing runs twice and every run comes to an end."""

import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killed_controllers import Killed, assert_snapshot_equals_ledger, kill_at_ledger_lines, take_for_dead
from state_values import counted_anew, counter_values

from muloco_runner.record import ExitCode, Goodput, Kind
from sweeps import controller as controller_module
from sweeps.controller import Controller, Tick
from sweeps.engine import moves
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, QuotaConfig
from sweeps.engine.decide import MAX_GPU_HOURS
from sweeps.engine.lower_bound import lower_bound_minutes
from sweeps.engine.policy import Cause
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Adapter, Need, Trunk, Work
from sweeps.simulation.faults import FAIR, ROUGH, FaultModel
from sweeps.simulation.simulate import begin, play, simulate
from sweeps.simulation.simulated_cluster import SimulatedCluster
from sweeps.simulation.world import Job, Node, World
from sweeps.store.folder import SweepFolder

LONG = pytest.mark.long
FEW, HISTORIES = 10, int(os.environ.get("MULOCO_HISTORIES", "40"))
"""As many random ones, the few among them; 10,000 take half an hour of one core."""
DAY = 86400.0
SHAPES = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8))
ADAPTER = Adapter(adjustments={Cause.OUT_OF_MEMORY.value: "halvings"}, speaks_exit_codes=True)


def piece(name: str, need: Need) -> Work:
    return Work(name, f"/nowhere/{name}", "m:f", need=need, adapter=ADAPTER)


def branched(works: list[Work], rng: random.Random, share: float) -> list[Work]:
    """The same works, of which so many go on from a checkpoint of one that does not."""
    trunks = [work for work in works if rng.random() >= share]
    names = {work.name for work in trunks}
    return [
        work
        if work.name in names or not trunks
        else replace(work, trunk=Trunk(rng.choice(trunks).name, 100, rng.uniform(0.1, 0.9), 0.5))
        for work in works
    ]


@dataclass
class History:
    """What befalls a sweep."""

    works: list[Work]
    config: ClusterConfig
    faults: FaultModel
    kills: float
    """Share of the ledger's lines before or after which the controller dies."""
    commands: dict[int, tuple[str, dict[str, Any]]]
    """What people say, by the number of the tick."""
    max_gpu_hours: float | None
    snapshot_lines: int
    least_wait_minutes: float
    """After which a pending job may move to another allocation."""


@st.composite
def histories(draw: st.DrawFn) -> History:
    rng = random.Random(draw(st.integers(0, 2**32)))
    quotas = [rng.randint(4, 12) for _ in range(draw(st.integers(1, 2)))]
    whole = draw(st.booleans())
    works = [
        piece(f"r{n}", Need(nodes, gpus, 12 * gpus, 0.0, rng.uniform(1, 300)))
        for n in range(rng.randint(1, draw(st.sampled_from([5, 50, 200]))))
        for nodes, gpus in [rng.choice(SHAPES)]
    ]
    works = branched(works, rng, draw(st.sampled_from([0.0, 0.0, 0.5])))
    capped = draw(st.sampled_from([None, None, "each", "all"]))
    cap = rng.uniform(0.3, 2.0) * sum(work.need.gpus * work.need.expected_minutes / 60 for work in works)
    allocations = [
        AllocationConfig(
            f"a{n}",
            gpus_per_node=8,
            cpus_per_node=96,
            whole_nodes=whole,
            quota=QuotaConfig(
                nodes=nodes,
                jobs=rng.choice([None, nodes, 3]),
                submitted_jobs=rng.choice([None, 5]),
                gpu_hours=cap if capped == "each" else None,
            ),
        )
        for n, nodes in enumerate(quotas)
    ]
    mishaps = {name: draw(st.sampled_from([0.0, getattr(ROUGH, name), 3 * getattr(ROUGH, name)])) for name in _MISHAPS}
    faults = FaultModel(
        spread=0.3,
        seed=rng.randrange(2**32),
        background_load=draw(st.sampled_from([0.0, 0.3])),
        node_limit=draw(st.sampled_from([None, 4, 8])),
        submit_limit=draw(st.sampled_from([None, 4])),
        unlisted=draw(st.sampled_from([0.0, 0.0, 0.3])),
        **mishaps,
    )
    commands = {rng.randint(1, 200): _command(rng, works) for _ in range(draw(st.integers(0, 4)))}
    # Nothing stays paused or put aside for ever.
    commands |= {250: ("paused", {"paused": False}), 251: ("released", {"runs": [work.name for work in works]})}
    kills = draw(st.sampled_from([0.0, 0.02, 0.1]))
    config = ClusterConfig("c", "slurm", allocations)
    snapshot_lines = draw(st.sampled_from([5, 40, 2000]))
    least_wait = draw(st.sampled_from([0.1, 5.0]))
    return History(works, config, faults, kills, commands, cap if capped == "all" else None, snapshot_lines, least_wait)


_MISHAPS = [name for name, value in vars(ROUGH).items() if value and name != "spread"]


def _command(rng: random.Random, works: Sequence[Work]) -> tuple[str, dict[str, Any]]:
    some = [work.name for work in rng.sample(works, min(3, len(works)))]
    commands: list[tuple[str, dict[str, Any]]] = [
        ("own_limits", {"limits": {"nodes": rng.randint(4, 12)}}),
        ("paused", {"paused": True}),
        ("cancel", {"runs": some}),
        ("held", {"runs": some, "why": "held by hand"}),
    ]
    return rng.choice(commands)


class Watcher:
    """Checks the limits after each tick, by what the cluster holds and not by what the controller believes."""

    def __init__(self, history: History, folder: SweepFolder) -> None:
        self.history, self.folder, self.ticks = history, folder, 0
        self.most = {a.name: a.quota.nodes or 0 for a in history.config.allocations}
        self.held = dict.fromkeys(self.most, 0)
        self.peak: Counter[str] = Counter()
        """Most nodes at work at once since the last tick."""

    def started(self, cluster: SimulatedCluster) -> None:
        at_work: Counter[str] = Counter()
        for job in cluster.world.live():
            at_work[job.request.allocation] += len(job.nodes)
        self.peak |= at_work

    def __call__(self, tick: Tick, cluster: SimulatedCluster) -> None:
        live: Counter[str] = Counter()
        nodes: Counter[str] = Counter()
        for job in cluster.world.live():
            live[job.request.allocation] += 1
            if not cluster.world.is_behind(job):
                nodes[job.request.allocation] += job.request.nodes
        for allocation in self.history.config.allocations:
            name, quota = allocation.name, allocation.quota
            # A quota that sinks below what runs takes nothing away, and lets nothing start.
            assert max(nodes[name], self.peak[name]) <= max(self.most[name], self.held[name])
            self.held[name] = nodes[name]
            assert quota.submitted_jobs is None or live[name] <= quota.submitted_jobs
            assert quota.gpu_hours is None or cluster.world.gpu_hours(name) <= quota.gpu_hours + 1e-6
        cap = self.history.max_gpu_hours
        if cap is not None:
            assert sum(cluster.world.gpu_hours(name) for name in self.most) <= cap + 1e-6
        self.peak.clear()
        self.ticks += 1
        command = self.history.commands.get(self.ticks)
        if command is not None:
            event, values = command
            self.folder.send(event, **values)
            if event == "own_limits":
                self.most = dict.fromkeys(self.most, values["limits"]["nodes"])


def play_with_kills(history: History, root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[SweepState, set[str]]:
    """The state at the end, and the names of the runs that the cluster has seen to their end."""
    cluster = SimulatedCluster(history.config, history.faults, 12, 1.8e9)
    folder = SweepFolder(root, "s")
    watcher = Watcher(history, folder)
    luck = random.Random(history.faults.seed)
    start = World._start

    def start_and_tell(self: World, job: Job, nodes: list[Node]) -> None:
        start(self, job, nodes)
        watcher.started(cluster)

    with monkeypatch.context() as patch:
        kill_at_ledger_lines(patch, luck, history.kills / 2)
        patch.setattr(World, "_start", start_and_tell)
        patch.setattr(controller_module, "SNAPSHOT_LINES", history.snapshot_lines)
        patch.setattr(moves, "_LEAST_WAIT_MINUTES", history.least_wait_minutes)
        while True:
            controller = take_over(folder, history, cluster)
            if luck.random() < 0.1:
                assert_snapshot_equals_ledger(controller)
                assert counter_values(controller.state.counters) == counter_values(counted_anew(controller.state))
            try:
                if history.max_gpu_hours is not None:
                    controller.set_limits({MAX_GPU_HOURS: history.max_gpu_hours})
                play(controller, cluster, watcher, cluster.world.now + 3650 * DAY)
                return controller.state, {work.name for work in history.works if cluster.world.is_finished(work.name)}
            except Killed:
                cluster.world.advance(cluster.world.now + luck.choice([1.0, 60.0, 3600.0]))


def take_over(folder: SweepFolder, history: History, cluster: SimulatedCluster) -> Controller:
    """A controller as of another host: the one before it is dead."""
    take_for_dead(folder)
    return begin(folder, history.works, cluster)


def assert_hours_add_up(state: SweepState) -> None:
    """Every hour that was charged is of one kind, and each attempt's hours are what it was charged."""
    (by_kind,) = state.goodput.values() if state.goodput else [Goodput()]
    assert all(hours >= 0 for hours in by_kind.hours.values())
    assert by_kind.charged == pytest.approx(sum(state.spent_gpu_hours.values()), abs=1e-6)
    of_attempts = Counter[str]()
    for run in state.runs.values():
        for attempt in run.attempts:
            of_attempts.update(attempt.hours)
    for kind, hours in by_kind.hours.items():
        assert kind in (Kind.IDLE, Kind.WORK) or hours == pytest.approx(of_attempts[kind], abs=1e-6)


@pytest.mark.parametrize("examples", [FEW, pytest.param(HISTORIES, marks=LONG)])
def test_whatever_happens_every_run_ends_once_and_limits_hold(
    examples: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    @given(history=histories())
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def ends(history: History) -> None:
        assert_ends_once_within_limits(history, tmp_path_factory.mktemp("history"), monkeypatch)

    ends()


def assert_ends_once_within_limits(history: History, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # That nothing runs twice at once, or again after its end, the simulated cluster asserts itself.
    state, finished = play_with_kills(history, root, monkeypatch)
    assert {name for name, run in state.runs.items() if run.done} == finished
    has_cap = history.max_gpu_hours is not None or history.config.allocations[0].quota.gpu_hours is not None
    for name, run in state.runs.items():
        assert run.done or run.held or has_cap, name
    assert_hours_add_up(state)
    faults = history.faults
    mishaps = (faults.crashes, faults.broken, faults.hangs, faults.node_failures_per_day)
    if not any(mishaps) and not faults.preemptions_per_day and not has_cap and len(history.commands) == 2:
        assert state.counts["done"] == len(state.runs)


@pytest.mark.parametrize("examples", [FEW // 2, pytest.param(max(15, HISTORIES // 8), marks=LONG)])
def test_a_wide_run_is_never_kept_waiting_by_narrow_ones(examples: int) -> None:
    @given(
        seed=st.integers(0, 2**32),
        preemptions=st.sampled_from([0.0, 2.0, 6.0]),
        nodes=st.integers(4, 8),
        narrow=st.integers(30, 120),
    )
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    def is_started(seed: int, preemptions: float, nodes: int, narrow: int) -> None:
        assert_the_wide_run_starts(seed, preemptions, nodes, narrow)

    is_started()


def assert_the_wide_run_starts(seed: int, preemptions: float, nodes: int, narrow: int) -> None:
    rng = random.Random(seed)
    works = [piece(f"n{n}", Need(1, 8, 96, 0.0, rng.uniform(30, 300))) for n in range(narrow)]
    works.append(piece("wide", Need(nodes, 8, 96, 0.0, 600.0)))
    quota = QuotaConfig(nodes=nodes)
    config = ClusterConfig("c", "slurm", [AllocationConfig("a", gpus_per_node=8, cpus_per_node=96, quota=quota)])
    waits: list[tuple[float, float]] = []
    """Seconds that the wide run has waited so far, and the longest that what ran when it began to wait may run."""

    def on_tick(tick: Tick, cluster: SimulatedCluster) -> None:
        run = tick.state.runs["wide"]
        if run.done or run.in_flight or run.not_before > cluster.world.now:
            waits.clear()
        elif not waits:
            walls = [60 * job.request.wall_minutes for job in tick.state.jobs.values()]
            waits.append((cluster.world.now, max(walls, default=0.0)))
        else:
            since, longest = waits[0]
            assert cluster.world.now - since <= longest + 600.0

    outcome = simulate(works, config, FaultModel(preemptions_per_day=preemptions, seed=seed), on_tick)
    assert outcome.state.counts["done"] == len(works)


def study(num_runs: int) -> list[Work]:
    """Runs as the published study has them: many small, few wide, 1 to 64 GPUs."""
    rng = random.Random(0)
    kinds = [(1, 1, 90.0), (1, 4, 120.0), (1, 8, 200.0), (1, 8, 500.0), (2, 8, 400.0), (8, 8, 600.0)]
    chosen = rng.choices(kinds, [0.4, 0.25, 0.15, 0.1, 0.08, 0.02], k=num_runs)
    return [
        piece(f"r{n}", Need(nodes, gpus, 12 * gpus, 0.0, minutes * rng.uniform(0.5, 2)))
        for n, (nodes, gpus, minutes) in enumerate(chosen)
    ]


SIXTEEN = ClusterConfig(
    "c",
    "slurm",
    [AllocationConfig("a", gpus_per_node=8, cpus_per_node=96, whole_nodes=True, quota=QuotaConfig(nodes=16))],
)


@pytest.mark.parametrize(
    ("num_runs", "faults"),
    [
        (300, FaultModel()),
        (300, FAIR),
        pytest.param(2200, FAIR, marks=LONG),
        pytest.param(2200, FaultModel(), marks=LONG),
    ],
)
def test_the_published_study_comes_near_the_lower_bound(num_runs: int, faults: FaultModel) -> None:
    outcome = simulate(study(num_runs), SIXTEEN, faults)
    assert outcome.state.counts["done"] == num_runs
    assert outcome.lower_bound_minutes is not None
    assert outcome.makespan_minutes < 1.05 * outcome.lower_bound_minutes
    if faults == FaultModel():
        assert outcome.makespan_minutes >= outcome.lower_bound_minutes


@pytest.mark.thorough
def test_a_rough_cluster_costs_retries_and_loses_no_run() -> None:
    outcome = simulate(study(300), SIXTEEN, ROUGH)
    done, held = outcome.state.counts["done"], outcome.state.counts["held"]
    assert done + held == 300
    assert done > 280
    for cause in (Cause.NODE_FAILURE, Cause.PREEMPTED, Cause.CRASH, Cause.OUT_OF_MEMORY):
        assert outcome.attempts[cause.value], cause


def test_a_job_that_no_listing_shows_is_not_lost_while_it_lives() -> None:
    works = [piece(f"r{n}", Need(1, 8, 96, 0.0, 60.0)) for n in range(20)]
    outcome = simulate(works, SIXTEEN, FaultModel(unlisted=0.8))
    assert outcome.state.counts["done"] == 20
    assert outcome.attempts == {Cause.FINISHED.value: 20}


def test_the_lower_bound_is_the_work_or_the_longest_run() -> None:
    works = [piece(f"r{n}", Need(1, 4, 48, 0.0, 60.0)) for n in range(64)]
    assert lower_bound_minutes(works, SIXTEEN) == 64 * 60 / 2 / 16
    works.append(piece("long", Need(1, 8, 96, 0.0, 500.0)))
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
