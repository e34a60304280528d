"""A whole sweep in simulated time: the real controller, ledger and lease on a simulated cluster."""

from __future__ import annotations

import heapq
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps.controller import Controller, Tick
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.lower_bound import lower_bound_minutes
from sweeps.engine.sweep_state import SweepState, TrackedJob
from sweeps.engine.tuning.study import Study
from sweeps.engine.work import Work
from sweeps.simulation.faults import FaultModel
from sweeps.simulation.simulated_cluster import SimulatedCluster, num_nodes_of
from sweeps.simulation.surface import PlantedTrials
from sweeps.simulation.world import World
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.trials import Trials

_BEGIN = 1.8e9
"""Unix seconds at which simulated sweeps begin."""
_SPEEDS_SECONDS = 300.0
"""Running attempts are looked at so often where their speeds are compared."""
_CURVES_SECONDS = 30.0
"""And so often where runs are stopped by their curves."""
_MEMORY_DISK = Path("/dev/shm")


@dataclass(frozen=True)
class Outcome:
    """How a simulated sweep went. Minutes are simulated ones."""

    state: SweepState
    makespan_minutes: float
    node_hours: float
    """Held by jobs."""
    lower_bound_minutes: float | None
    """No schedule is shorter: max(total work / quota, longest run); None where the quota counts no nodes."""
    attempts: Counter[str]
    """Number of attempts by cause."""


def simulate(
    works: Sequence[Work],
    config: ClusterConfig,
    faults: FaultModel,
    on_tick: Callable[[Tick, SimulatedCluster], None] = lambda tick, cluster: None,
    max_days: float = 3650.0,
    trials: PlantedTrials | None = None,
) -> Outcome:
    """Plays the sweep to its end. One that does not end within `max_days` raises `RuntimeError`.

    With `trials` it goes on by the results that are planted there.
    """
    num_nodes = max(num_nodes_of(allocation) for allocation in config.allocations)
    cluster = SimulatedCluster(config, faults, num_nodes, _BEGIN)
    with tempfile.TemporaryDirectory(dir=_MEMORY_DISK if _MEMORY_DISK.is_dir() else None) as root:
        folder = SweepFolder(Path(root), "simulated")
        controller = begin(folder, works, cluster, trials)
        ended_at = play(controller, cluster, on_tick, _BEGIN + 86400 * max_days)
    return Outcome(
        controller.state,
        (ended_at - _BEGIN) / 60,
        cluster.world.node_seconds / 3600,
        lower_bound_minutes(list(controller.state.runs.works), config),
        Counter(
            attempt.cause.value
            for run in controller.state.runs.values()
            for attempt in run.attempts
            if attempt.cause is not None
        ),
    )


class PlayedTrials(Trials):
    """Runs of a simulated world: a trunk's checkpoint is there once the world has come so far."""

    def __init__(self, world: World) -> None:
        self.world = world

    def begin_branch(self, work: Work) -> bool:
        assert work.trunk is not None
        return self.world.reaches(work.trunk.run, work.trunk.share) <= self.world.now


def begin(
    folder: SweepFolder, works: Sequence[Work], cluster: SimulatedCluster, trials: PlantedTrials | None = None
) -> Controller:
    """A controller of the sweep in that folder, new or taken over."""
    definition = definition_of(folder, works, cluster.config, trials.study if trials is not None else None)
    if trials is not None:
        trials.share_of = cluster.world.share_done
    return Controller(
        folder,
        definition,
        lambda _config, _path: cluster,
        clock=lambda: cluster.world.now,
        trials=trials or PlayedTrials(cluster.world),
    )


def definition_of(
    folder: SweepFolder, works: Sequence[Work], config: ClusterConfig, study: Study | None = None
) -> Definition:
    return Definition(folder.name, config.name, config.to_dict(), list(works), study=study)


def play(
    controller: Controller, cluster: SimulatedCluster, on_tick: Callable[[Tick, SimulatedCluster], None], latest: float
) -> float:
    """Ticks until the sweep is over, leaping over ticks at which nothing can have changed; Unix seconds of its end."""
    tick_seconds = cluster.config.tick_seconds
    retries: list[float] = []
    while True:
        in_flight = dict(controller.state.jobs)
        tick = controller.tick()
        on_tick(tick, cluster)
        if controller.state.is_over or tick.plan.unschedulable:
            return cluster.world.now
        if cluster.world.now > latest:
            raise RuntimeError(f"the simulated sweep does not end: {dict(controller.state.counts)}")
        for tag in in_flight.keys() - controller.state.jobs.keys():
            for attempt in in_flight[tag].request.attempts:
                heapq.heappush(retries, controller.state.runs[attempt.work.name].not_before)
        while retries and retries[0] <= cluster.world.now:
            heapq.heappop(retries)
        quiet = _quiet_seconds(tick, cluster, min(retries[:1], default=math.inf))
        if controller.early_stopping is not None and controller.state.jobs:
            quiet = min(quiet, _CURVES_SECONDS)
        cluster.world.advance(cluster.world.now + tick_seconds * max(1, math.ceil(quiet / tick_seconds)))


def _quiet_seconds(tick: Tick, cluster: SimulatedCluster, next_retry_at: float) -> float:
    """Seconds during which an observation would not change."""
    state, now = tick.state, cluster.world.now
    timeout = cluster.config.submit_confirm_timeout_seconds
    if not tick.complete or any(_is_young(job, now, timeout) for job in state.jobs.values()):
        return 0.0
    if any(map(cluster.has_ended_unlisted, state.jobs)):
        return 0.0
    changes = [
        cluster.world.next_event_at,
        next_retry_at,
        now + 60 * (cluster.config.heartbeat_timeout_minutes or math.inf),
        tick.plan.due_at,
    ]
    if cluster.config.slow_node_factor is not None and state.jobs:
        changes.append(now + _SPEEDS_SECONDS)
    changes += [until for until in state.defer_until.values() if until > now]
    changes += [at for at in _branches_due(state, cluster.world) if at > now]
    return max(0.0, min(changes) - now)


def _branches_due(state: SweepState, world: World) -> Iterator[float]:
    """When trunks at work will have come to the checkpoints that branches wait for."""
    for job in state.jobs.values():
        for attempt in job.request.attempts:
            for name in state.behind.get(attempt.work.name, ()):
                trunk = state.runs[name].work.trunk
                assert trunk is not None
                yield world.reaches(trunk.run, trunk.share)


def _is_young(job: TrackedJob, now: float, timeout: float) -> bool:
    """It may not have been seen yet, and be given up for that."""
    return job.started_at is None and now - job.intended_at <= timeout + 60
