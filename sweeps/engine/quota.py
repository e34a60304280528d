"""Limits and what they say of a request before anything is submitted: RUN, WAIT for a limit, or NEVER under one.

The tightest limit binds, whoever set it: the user's quota in the cluster file or set while running, or the cluster's
own. What others use of it counts. A scheduler accepts a job that can never run and lets it wait for ever, so the
verdict is computed here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

from sweeps.engine.cluster import JobRequest, Limit, Limits, Resource
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig
from sweeps.engine.job_needs import indivisible_minutes
from sweeps.engine.sweep_state import SweepState, TrackedJob
from sweeps.engine.work import Work
from sweeps.engine.works import Shape, shape_of

Job = TypeVar("Job")


class VerdictKind(Enum):
    RUN = "RUN"
    WAIT = "WAIT"
    NEVER = "NEVER"


@dataclass(frozen=True)
class Verdict:
    kind: VerdictKind
    why: str = ""
    """Which limit, how much is used and what was asked."""

    def __str__(self) -> str:
        return f"{self.kind.value}({self.why})" if self.why else self.kind.value


@dataclass(frozen=True)
class Amount:
    """What a job asks for, or what jobs hold, by resource."""

    of: Mapping[Resource, float]

    def __add__(self, other: Amount) -> Amount:
        keys = {**self.of, **other.of}
        return Amount({key: self.of.get(key, 0.0) + other.of.get(key, 0.0) for key in keys})


NOTHING = Amount({})


def asked(
    nodes: int,
    gpus_per_node: int,
    cpus_per_node: int,
    wall_minutes: float,
    gpu_hours: float,
    memory_gigabytes: float | None = None,
) -> Amount:
    """The amount that one job asks for; `memory_gigabytes` are those of each node, in GiB."""
    return Amount(
        {
            Resource.NODES: nodes,
            Resource.GPUS: nodes * gpus_per_node,
            Resource.CPUS: nodes * cpus_per_node,
            Resource.JOBS: 1,
            Resource.SUBMITTED: 1,
            Resource.GPU_HOURS: gpu_hours,
            Resource.WALL_MINUTES: wall_minutes,
            Resource.CPUS_PER_NODE: cpus_per_node,
            Resource.GPUS_PER_NODE: gpus_per_node,
            Resource.MEMORY_PER_NODE: memory_gigabytes or 0.0,
            Resource.NODES_PER_JOB: nodes,
            Resource.GPUS_PER_JOB: nodes * gpus_per_node,
            Resource.NODES_THERE: nodes,
        }
    )


PER_JOB = (
    Resource.WALL_MINUTES,
    Resource.CPUS_PER_NODE,
    Resource.GPUS_PER_NODE,
    Resource.MEMORY_PER_NODE,
    Resource.NODES_PER_JOB,
    Resource.GPUS_PER_JOB,
    Resource.NODES_THERE,
)
OF_NODES = (Resource.NODES, Resource.GPUS, Resource.CPUS, Resource.JOBS)
"""What a successor takes over from the job before it: together the two hold no more than the larger of them."""
_REMEDIES = {Resource.WALL_MINUTES: ": lower wall_minutes, or name a partition or QOS that allows more"}


def own_limits(allocation: AllocationConfig, while_running: Mapping[str, float]) -> list[Limit]:
    """The user's quota of one allocation; numbers set while running (by field name) take the place of the file's."""
    quota = {**vars(allocation.quota), **while_running}
    resources = {
        "nodes": Resource.NODES,
        "gpus": Resource.GPUS,
        "jobs": Resource.JOBS,
        "submitted_jobs": Resource.SUBMITTED,
        "gpu_hours": Resource.GPU_HOURS,
    }
    limits = [
        Limit(f"quota.{name}", resource, quota[name])
        for name, resource in resources.items()
        if quota.get(name) is not None
    ]
    return [*limits, Limit("max_wall_minutes", Resource.WALL_MINUTES, allocation.max_wall_minutes)]


def by_place(limits: Sequence[Limit]) -> list[list[Limit]]:
    """The limits that hold together, for each place that a job may run in (`Limit.place`)."""
    places = dict.fromkeys(limit.place for limit in limits if limit.place) or {"": None}
    return [[limit for limit in limits if limit.place in ("", place)] for place in places]


def best_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The best of the verdicts on several ways to run a job: NEVER, with every reason, only where all say so."""
    for kind in (VerdictKind.RUN, VerdictKind.WAIT):
        found = next((one for one in verdicts if one.kind is kind), None)
        if found is not None:
            return found
    return Verdict(VerdictKind.NEVER, "; ".join(dict.fromkeys(one.why for one in verdicts)))


def verdict(request: Amount, limits: Sequence[Limit], held: Amount) -> Verdict:
    """Whether one more job may start beside those that hold `held`."""
    return best_of([_verdict_in(request, there, held) for there in by_place(limits)])


def _verdict_in(request: Amount, limits: Sequence[Limit], held: Amount) -> Verdict:
    """The verdict in one place."""
    waits = None
    for limit in limits:
        wanted = request.of.get(limit.resource, 0.0)
        if wanted > limit.most:
            asks = f"{limit.name}={_number(limit.most)} {limit.resource.value}, asks {_number(wanted)}"
            return Verdict(VerdictKind.NEVER, asks + _REMEDIES.get(limit.resource, ""))
        if limit.resource in PER_JOB or wanted == 0:
            continue
        used = held.of.get(limit.resource, 0.0) + limit.used_by_others
        if used + wanted > limit.most and waits is None:
            theirs = limit.used_by_others
            outside = f", {_number(theirs)} of them by jobs outside this sweep" if theirs else ""
            waits = f"{limit.name}: {_number(used)} of {_number(limit.most)} {limit.resource.value} used{outside}"
    return Verdict(VerdictKind.RUN) if waits is None else Verdict(VerdictKind.WAIT, waits)


def job_shape(shape: Shape, allocation: AllocationConfig) -> Shape:
    """The shape of a job for work of that shape: whole nodes, where they are allocated whole."""
    nodes, gpus, cpus = shape
    return (
        (nodes, allocation.gpus_per_node, allocation.cpus_per_node) if allocation.whole_nodes else (nodes, gpus, cpus)
    )


def shape_verdict(shape: Shape, allocation: AllocationConfig) -> Verdict:
    """Whether the allocation's nodes are of the right make at all for (nodes, GPUs a node, CPUs a node)."""
    _, gpus, cpus = shape
    if gpus > allocation.gpus_per_node:
        have = allocation.gpus_per_node
        return Verdict(VerdictKind.NEVER, f"nodes of {allocation.name} have {have} GPUs, asks {gpus}")
    if gpus == 0 and cpus > allocation.cpus_per_node:
        have = allocation.cpus_per_node
        return Verdict(VerdictKind.NEVER, f"nodes of {allocation.name} have {have} CPUs, asks {cpus}")
    return Verdict(VerdictKind.RUN)


def best_verdict(work: Work, allocations: Sequence[AllocationConfig], limits: Mapping[str, Sequence[Limit]]) -> Verdict:
    """Return the best verdict that any allocation gives the work by itself. `limits` are by allocation."""
    answers = []
    for allocation in allocations:
        need = work.need
        shape = shape_verdict(shape_of(work), allocation)
        if shape.kind is VerdictKind.NEVER:
            answers.append(shape)
            continue
        hours = need.gpus * need.expected_minutes / 60
        memory = allocation.memory_gigabytes if need.memory_gigabytes is None else need.memory_gigabytes
        request = asked(*job_shape(shape_of(work), allocation), indivisible_minutes(work), hours, memory)
        answers.append(verdict(request, limits[allocation.name], NOTHING))
    return best_of(answers)


def never_runs(
    works: Sequence[Work], config: ClusterConfig, limits: Limits, state: SweepState
) -> tuple[Work, str] | None:
    """Return the first piece of work that can never run, and why; None where all can."""
    found = all_limits(config, limits, state)
    # Of those of one need the first is named.
    for work in {work.need: work for work in reversed(works)}.values():
        verdict = best_verdict(work, config.allocations, found)
        if verdict.kind is VerdictKind.NEVER:
            return work, verdict.why
    return None


def longest_minutes(shape: Shape, allocation: AllocationConfig, limits: Sequence[Limit]) -> Limit:
    """The limit on the time of a job of that shape, in the place that allows most of those that could take it."""
    own = Limit("max_wall_minutes", Resource.WALL_MINUTES, allocation.max_wall_minutes)
    request = asked(*job_shape(shape, allocation), 0, 0)
    there = by_place(limits)
    fitting = [place for place in there if _verdict_in(request, place, NOTHING).kind is not VerdictKind.NEVER]
    tightest = [
        min([own, *(limit for limit in place if limit.resource is Resource.WALL_MINUTES)], key=lambda one: one.most)
        for place in fitting or there
    ]
    return max(tightest, key=lambda one: one.most)


def all_limits(cluster: ClusterConfig, live: Limits, state: SweepState) -> dict[str, list[Limit]]:
    """All limits by allocation: the user's own, which the user's other jobs count against too, and the cluster's."""
    limits = {}
    for allocation in cluster.allocations:
        others = live.others.get(allocation.name, {})
        own = [
            replace(limit, used_by_others=others.get(limit.resource, 0.0))
            for limit in own_limits(allocation, state.own_limits)
        ]
        spent = state.spent_gpu_hours.get(allocation.name, 0.0)
        limits[allocation.name] = [*own, *(_without(limit, spent) for limit in live.of.get(allocation.name, ()))]
    return limits


def _without(limit: Limit, spent_gpu_hours: float) -> Limit:
    """GPU-hours that the cluster has counted already are not this sweep's and others' at once."""
    if limit.resource is not Resource.GPU_HOURS:
        return limit
    return replace(limit, used_by_others=max(0.0, limit.used_by_others - spent_gpu_hours))


def held_by_sweep(cluster: ClusterConfig, state: SweepState) -> dict[str, Amount]:
    """What this sweep's jobs hold, by allocation, with the GPU-hours that are used or committed."""
    by_allocation: dict[str, list[TrackedJob]] = defaultdict(list)
    for job in state.jobs.values():
        by_allocation[job.request.allocation].append(job)
    return {
        name: Amount({Resource.GPU_HOURS: state.spent_gpu_hours.get(name, 0.0)}) + held_by_jobs(by_allocation[name])
        for name in dict.fromkeys([*(allocation.name for allocation in cluster.allocations), *by_allocation])
    }


def held_by_jobs(jobs: Sequence[TrackedJob]) -> Amount:
    """What those jobs, all of one allocation and in flight, hold."""
    held = NOTHING
    for chain in job_chains(jobs):
        held = held + held_by_chain([job.request for job in chain])
    return held


def chains(jobs: Iterable[Job], name: Callable[[Job], str], after: Callable[[Job], Collection[str]]) -> list[list[Job]]:
    """Return the jobs in chains, each job behind those that must have ended before it starts.

    A successor names every job before it in its chain. So a chain holds no more at once than the largest of its jobs,
    however these end, and even where one in the middle is cancelled.

    `jobs` have not ended and are in the order of their submission. `after` are the names of the jobs that must have
    ended first.
    """
    by_last: dict[str, list[Job]] = {}
    found: list[list[Job]] = []
    for job in jobs:
        earlier = set(after(job))
        behind = (by_last[last] for last in earlier if last in by_last)
        chain = next((one for one in behind if all(name(before) in earlier for before in one)), None)
        if chain is None:
            chain = []
            found.append(chain)
        else:
            del by_last[name(chain[-1])]
        chain.append(job)
        by_last[name(job)] = chain
    return found


def job_chains(jobs: Sequence[TrackedJob]) -> list[list[TrackedJob]]:
    """The jobs in flight of one allocation, each with its successors behind it."""
    return chains(jobs, lambda job: job.tag, lambda job: job.request.after)


def held_by_chain(requests: Sequence[JobRequest]) -> Amount:
    """What jobs that follow each other on the same nodes hold together."""
    amounts = [amount_of(request) for request in requests]
    of = {resource: [amount.of[resource] for amount in amounts] for resource in amounts[0].of}
    return Amount({resource: max(each) if resource in OF_NODES else sum(each) for resource, each in of.items()})


def amount_of(request: JobRequest) -> Amount:
    gpu_hours = request.nodes * request.gpus_per_node * request.wall_minutes / 60
    return asked(request.nodes, request.gpus_per_node, request.cpus_per_node, request.wall_minutes, gpu_hours)


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
