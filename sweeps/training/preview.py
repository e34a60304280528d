"""What a sweep would cost and whether it can run at all, before anything is submitted."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from muloco_runner.config import ConfigError, RunConfig
from sweeps.engine.capacity import MAX_GPU_HOURS
from sweeps.engine.cluster import Limit, Limits, Resource
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.decide import decide
from sweeps.engine.job_needs import job_minutes, num_jobs
from sweeps.engine.policy import Cause
from sweeps.engine.quota import Verdict, VerdictKind, all_limits, best_verdict, longest_minutes
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Work
from sweeps.engine.works import Shape, Works, shape_of
from sweeps.formatting import duration, plural
from sweeps.node.attempt_files import is_finished
from sweeps.node.code_snapshot import source_space
from sweeps.training.budget_branches import is_lost
from sweeps.training.disk import DiskUse, RunSpace, Span, disk_use, spaces_of
from sweeps.training.gpus import Fit, Gpus
from sweeps.training.sweep import Sweep
from sweeps.training.weights import BEST_OF_SWEEP, cost_of_weights, series_of, without_weights


@dataclass(frozen=True)
class PlannedRun:
    work: Work
    verdict: Verdict
    finished: bool
    fit: Fit | None = None
    """How a training run lies in the memory of its GPUs, where it has any."""
    num_jobs: int = 1
    """Jobs that it is cut into, one after the other, by the limit on the time of one."""


@dataclass(frozen=True)
class Preview:
    sweep: Sweep
    runs: list[PlannedRun]
    gpu_hours: float
    node_hours: float
    """Runs that share a node count it once."""
    makespan_minutes: float
    """Makespan under the quota if every run takes its expected time and nobody else holds what the quota counts."""
    note: str = ""
    """Why the cluster's own limits are not in it, where they are not."""
    cuts: Sequence[str] = ()
    """What limits on the time of a job do to longer runs, one sentence each."""
    weights: str = ""
    """What weights of runs that are finished without any would cost, where they are asked for."""
    disk: DiskUse | None = None
    """What its training runs write; None where there are none."""
    spared_hours: float = 0.0
    """GPU-hours, of CPUs where there are no GPUs, that branches take less than if they were trained by themselves."""
    affordable: frozenset[str] | None = None
    """Names of the unfinished runs that would be done under a cap on GPU-hours; None without one."""


def check_cap(sweep: Sweep, max_gpu_hours: float | None) -> None:
    """A limit on the GPU-hours of a cluster without GPUs raises `ConfigError`."""
    if max_gpu_hours is None:
        return
    if not any(allocation.gpus_per_node for allocation in sweep.cluster.allocations):
        raise ConfigError(f"--max-gpu-hours has no effect: cluster {sweep.cluster.name} has no GPUs; drop it")


def preview(sweep: Sweep, live: Limits, max_gpu_hours: float | None = None) -> Preview:
    """The preview of the whole sweep, finished runs counted as done, under a cap on GPU-hours if one is given."""
    state = SweepState.of(sweep.definition.works)
    limits = all_limits(sweep.cluster, live, state)
    runs, gpus = {run.run_id: run for run in sweep.runs}, Gpus(sweep.cluster, sweep.execution)
    longest = _Longest(sweep.cluster, limits)
    planned = [
        PlannedRun(
            work,
            _verdict_on(work, sweep.cluster, limits),
            is_finished(work),
            gpus.fit(runs[work.name], work.need.gpus) if work.need.gpus and work.name in runs else None,
            num_jobs(work.need.expected_minutes, longest.of(shape_of(work)).most),
        )
        for work in sweep.definition.works
    ]
    to_run = [run.work for run in planned if not run.finished and run.verdict.kind is not VerdictKind.NEVER]
    gpu_hours = sum(work.need.gpus * work.need.expected_minutes for work in to_run) / 60
    alone = {name: [_without_others(limit) for limit in found] for name, found in limits.items()}
    makespan, node_minutes, done, spans = replay(to_run, sweep.cluster, alone, max_gpu_hours)
    spaces = _spaces(sweep, runs, planned)
    return Preview(
        sweep,
        planned,
        gpu_hours,
        node_minutes / 60,
        makespan,
        live.note,
        cuts_of(to_run, sweep.cluster, limits),
        cost_of_weights(without_weights(sweep.definition.works)),
        disk_use(sweep.root, spans, spaces, source_space(sweep.root), _freed_at_end(sweep, to_run, spaces)),
        _spared_hours(to_run),
        None if max_gpu_hours is None else done,
    )


def _verdict_on(work: Work, cluster: ClusterConfig, limits: Mapping[str, Sequence[Limit]]) -> Verdict:
    if work.trunk is not None and is_lost(work):
        return Verdict(VerdictKind.NEVER, work.trunk.missing_words)
    return best_verdict(work, cluster.allocations, limits)


def _spared_hours(works: Sequence[Work]) -> float:
    needs = [(work.need, work.trunk) for work in works if work.trunk is not None]
    return sum(
        (need.gpus or need.nodes * need.cpus_per_node) * trunk.spared_minutes(need.expected_minutes) / 60
        for need, trunk in needs
    )


def _spaces(sweep: Sweep, runs: Mapping[str, RunConfig], planned: Sequence[PlannedRun]) -> dict[str, RunSpace]:
    num_jobs = {run.work.name: run.num_jobs for run in planned}
    for_branches = {
        run.work.name: len(run.work.arguments.get("execution", {}).get("branch_steps") or ()) for run in planned
    }
    return spaces_of(runs, sweep.execution, num_jobs, for_branches)


def _freed_at_end(sweep: Sweep, works: Sequence[Work], spaces: Mapping[str, RunSpace]) -> int:
    """Bytes of weights that the sweep removes when it ends, where it keeps the best of each series alone."""
    if sweep.execution.keep != BEST_OF_SWEEP:
        return 0
    names = {work.name for work in works}
    series: dict[str, list[int]] = {}
    for run in sweep.runs:
        if run.run_id in names:
            series.setdefault(series_of(run), []).append(spaces[run.run_id].checkpoint_bytes)
    return sum(sum(sizes) - max(sizes) for sizes in series.values())


def cuts_of(works: Sequence[Work], cluster: ClusterConfig, limits: Mapping[str, Sequence[Limit]]) -> list[str]:
    """One sentence for each limit on the time of a job that cuts some of the works. `limits` are by allocation."""
    columns, longest = Works.of(works), _Longest(cluster, limits)
    found: dict[Limit, list[int]] = {}
    for position in range(len(columns)):
        limit = longest.of(columns.shape(position))
        number = num_jobs(columns.minutes(position), limit.most)
        if number > 1:
            found.setdefault(limit, []).append(number)
    return [
        f"{plural(len(numbers), 'run')} of more than {duration(60 * limit.most)} ({limit.name}): cut into up to "
        f"{max(numbers)} jobs each, which go on from the last checkpoint"
        for limit, numbers in found.items()
    ]


class _Longest:
    """The limit on the time of a job for work of one shape, where jobs may be longest."""

    def __init__(self, cluster: ClusterConfig, limits: Mapping[str, Sequence[Limit]]) -> None:
        self._cluster, self._limits = cluster, limits
        self._known: dict[Shape, Limit] = {}

    def of(self, shape: Shape) -> Limit:
        if shape not in self._known:
            found = [longest_minutes(shape, one, self._limits[one.name]) for one in self._cluster.allocations]
            self._known[shape] = max(found, key=lambda limit: limit.most)
        return self._known[shape]


def _without_others(limit: Limit) -> Limit:
    """What others hold now they give back; GPU-hours that they have used they do not."""
    return limit if limit.resource is Resource.GPU_HOURS else replace(limit, used_by_others=0.0)


def replay(
    works: Sequence[Work],
    cluster: ClusterConfig,
    limits: Mapping[str, Sequence[Limit]],
    max_gpu_hours: float | None = None,
) -> tuple[float, float, frozenset[str], list[Span]]:
    """Minutes until the last run ends, node-minutes used, the runs that are done then, and when each is at work, if
    every run takes the time expected of it: the controller's own decisions, played through. A run of several jobs
    counts as one of their length.
    """
    cluster = replace(cluster, allocations=[replace(a, max_wall_minutes=math.inf) for a in cluster.allocations])
    limits = {
        name: [limit for limit in found if limit.resource is not Resource.WALL_MINUTES]
        for name, found in limits.items()
    }
    state = SweepState.of(works)
    if max_gpu_hours is not None:
        state.own_limits[MAX_GPU_HOURS] = max_gpu_hours
    now, node_minutes = 0.0, 0.0
    ends: list[tuple[float, str]] = []
    """Of jobs, by their tag."""
    ready: list[tuple[float, str]] = []
    """When runs have their trunk's checkpoint, by their name."""
    spans: list[Span] = []
    while True:
        for request in decide(state, cluster, limits, now).submit:
            state.apply({"event": "intended", "tag": request.tag, "time": now}, request)
            state.apply({"event": "started", "tag": request.tag, "time": now, "at": now, "nodes": []})
            minutes = job_minutes(request)
            node_minutes += request.nodes * minutes
            heapq.heappush(ends, (now + 60 * minutes, request.tag))
            for attempt in request.attempts:
                spans.append((now, now + 60 * minutes, attempt.work.name))
                for name in state.behind.get(attempt.work.name, ()):
                    trunk = state.runs[name].work.trunk
                    assert trunk is not None
                    heapq.heappush(ready, (now + 60 * trunk.share * attempt.work.need.expected_minutes, name))
        if ready and (not ends or ready[0][0] <= ends[0][0]):
            now, name = heapq.heappop(ready)
            state.apply({"event": "ready", "time": now, "runs": [name]})
            continue
        if not ends:
            done = frozenset(work.name for work in works if state.runs[work.name].done)
            return now / 60, node_minutes, done, spans
        now, tag = heapq.heappop(ends)
        request = state.jobs[tag].request
        hours = request.nodes * request.gpus_per_node * job_minutes(request) / 60
        ending = {"cause": Cause.FINISHED.value, "detail": "", "checkpoint_step": 0, "at": now, "started_at": now}
        endings = {attempt.work.name: ending for attempt in request.attempts}
        ended = {"event": "ended", "tag": tag, "time": now, "endings": endings, "gpu_hours": hours, "struck_nodes": []}
        state.apply(ended)
