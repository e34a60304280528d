"""What a sweep would cost and whether it can run at all, before anything is submitted."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.clusters.interface import Limit, Limits, Resource
from sweeps.config import AllocationConfig
from sweeps.launch import Sweep
from sweeps.quota import NOTHING, Verdict, VerdictKind, all_limits, asked, shape_verdict, verdict
from sweeps.state import RunState, SweepState, shape_of
from sweeps.work import Work


@dataclass(frozen=True)
class PlannedRun:
    work: Work
    verdict: Verdict
    finished: bool


@dataclass(frozen=True)
class Preview:
    sweep: Sweep
    runs: list[PlannedRun]
    gpu_hours: float
    node_hours: float
    makespan_minutes: float
    """Under the quota, by filling it widest first; at least the lower bound of work over quota."""


def preview(sweep: Sweep, live: Limits | None = None) -> Preview:
    """Of the whole sweep, finished runs counted as done."""
    state = SweepState({work.name: RunState(work) for work in sweep.definition.works})
    limits = all_limits(sweep.cluster, live or Limits(), state)
    planned = [
        PlannedRun(work, _verdict(work, sweep.cluster.allocations, limits), work.is_finished)
        for work in sweep.definition.works
    ]
    to_run = [run.work for run in planned if not run.finished and run.verdict.kind is not VerdictKind.NEVER]
    gpu_hours = sum(work.need.gpus * work.need.expected_minutes for work in to_run) / 60
    node_hours = sum(work.need.nodes * work.need.expected_minutes for work in to_run) / 60
    return Preview(sweep, planned, gpu_hours, node_hours, _makespan(to_run, sweep.cluster.allocations, limits))


def _verdict(work: Work, allocations: Sequence[AllocationConfig], limits: Mapping[str, Sequence[Limit]]) -> Verdict:
    """The best that any allocation offers to the run alone."""
    answers = []
    for allocation in allocations:
        need = work.need
        shape = shape_verdict(shape_of(work), allocation)
        if shape.kind is VerdictKind.NEVER:
            answers.append(shape)
            continue
        hours = need.gpus * need.expected_minutes / 60
        request = asked(need.nodes, need.gpus_per_node, need.cpus_per_node, 0, hours)
        answers.append(verdict(request, limits[allocation.name], NOTHING))
    order = [VerdictKind.RUN, VerdictKind.WAIT, VerdictKind.NEVER]
    return min(answers, key=lambda answer: order.index(answer.kind))


def _makespan(
    works: Sequence[Work], allocations: Sequence[AllocationConfig], limits: Mapping[str, Sequence[Limit]]
) -> float:
    """Minutes until the last run ends, each started as soon as its places are free: places are whole jobs or nodes."""
    places = 0.0
    for allocation in allocations:
        caps = [limit.most for limit in limits[allocation.name] if limit.resource in (Resource.NODES, Resource.JOBS)]
        places += min(caps, default=len(works) or 1)
    count = max(1, int(places))
    free = [0.0] * min(count, 100_000)
    for work in sorted(works, key=lambda w: (-w.need.nodes, -w.need.expected_minutes)):
        taken = [heapq.heappop(free) for _ in range(min(work.need.nodes, len(free)))]
        end = max(taken) + work.need.expected_minutes
        for _ in taken:
            heapq.heappush(free, end)
    return max(free, default=0.0)
