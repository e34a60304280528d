"""The capacity of one allocation while it is being filled: what limits, budget and a reservation leave free."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sweeps.engine.cluster import JobRequest, Limit, Resource
from sweeps.engine.cluster_config import AllocationConfig
from sweeps.engine.job_needs import num_jobs, wall_minutes
from sweeps.engine.quota import (
    OF_NODES,
    Amount,
    Verdict,
    VerdictKind,
    amount_of,
    asked,
    job_shape,
    longest_minutes,
    shape_verdict,
    verdict,
)
from sweeps.engine.run_states import RunState
from sweeps.engine.works import Shape, shape_of

MAX_GPU_HOURS = "max_gpu_hours"
"""The name among a sweep's own limits of the cap over all allocations."""
_MOST_EXCLUDED = 8
"""Most nodes that a job avoids: beyond that the nodes are not the cause,"""
_SHARE_EXCLUDED = 1 / 4
"""and the largest share of all nodes: a job that excludes too many never starts."""


@dataclass
class Budget:
    """The cap on GPU-hours over all allocations, and what is used or committed of it."""

    most: float
    held: float

    @property
    def limit(self) -> Limit:
        return Limit(MAX_GPU_HOURS, Resource.GPU_HOURS, self.most)


@dataclass
class Capacity:
    """One allocation while it is being filled."""

    allocation: AllocationConfig
    limits: Sequence[Limit]
    held: Amount
    budget: Budget
    closed_until: float = 0.0
    """The cluster accepts no more jobs here before this; Unix seconds."""
    queue_minutes: float = 0.0
    """Expected wait in the cluster's own queue of a job that is submitted now."""
    num_queued: int = 0
    """Our jobs in that queue."""
    reserved_at: float = math.inf
    """When the run with the reservation could start; Unix seconds."""
    reserved_nodes: int = 0
    """Nodes of that run."""
    spare_nodes: float = math.inf
    """Nodes that it leaves free then."""

    def slots(self, shape: Shape) -> int:
        """Runs of that shape in one job."""
        nodes, gpus, _ = shape
        if not self.allocation.whole_nodes or nodes > 1 or gpus == 0:
            return 1
        return max(1, self.allocation.gpus_per_node // gpus)

    def slots_left(self, pack: Sequence[RunState], shape: Shape) -> int:
        """Runs of a narrower shape that fit beside those of the pack, each with GPUs of its own."""
        nodes, gpus, _ = shape
        if not self.allocation.whole_nodes or nodes > 1 or gpus == 0 or pack[0].work.need.nodes > 1:
            return 0
        return int(self.allocation.gpus_per_node - sum(run.work.need.gpus for run in pack)) // gpus

    def verdict_on(self, shape: Shape, minutes: float, now: float, wall_minutes: float = 0.0) -> Verdict:
        """Return whether one more job of that shape and length may start beside those that are held, with at least
        `wall_minutes` of wall time."""
        if now < self.closed_until:
            seconds = math.ceil(self.closed_until - now)
            return Verdict(
                VerdictKind.WAIT, f"{self.allocation.name} accepts no more jobs for now; tried again in {seconds} s"
            )
        answer = shape_verdict(shape, self.allocation)
        if answer.kind is VerdictKind.RUN:
            amount = self._amount(shape, minutes, wall_minutes)
            answer = verdict(amount, self.limits, self.held)
            if answer.kind is VerdictKind.RUN:
                answer = verdict(amount, [self.budget.limit], Amount({Resource.GPU_HOURS: self.budget.held}))
        if answer.kind is VerdictKind.RUN and not self._keeps_reservation(shape[0], now + 60 * minutes):
            return Verdict(VerdictKind.WAIT, "nodes are kept for a wider run")
        return answer

    def longest(self, shape: Shape, now: float) -> float:
        """Minutes of the longest run of that shape that may start now; 0 where none may."""
        if self.verdict_on(shape, 0.0, now).kind is not VerdictKind.RUN:
            return 0.0
        minutes = self._affordable_minutes(shape)
        return minutes if shape[0] <= self.spare_nodes else min(minutes, (self.reserved_at - now) / 60)

    def would_ever_take(self, shape: Shape, minutes: float, wall_minutes: float = 0.0) -> bool:
        """Whether the limits would allow it with nobody else on the cluster."""
        alone = [replace(limit, used_by_others=0.0) for limit in self.limits]
        amount = self._amount(shape, minutes, wall_minutes)
        taken = verdict(amount, alone, self.held).kind is VerdictKind.RUN
        taken = taken and self.budget.held + amount.of[Resource.GPU_HOURS] <= self.budget.most
        return taken and shape_verdict(shape, self.allocation).kind is VerdictKind.RUN

    def longest_wall_minutes(self, shape: Shape) -> float:
        return longest_minutes(shape, self.allocation, self.limits).most

    def wall_minutes(self, pack: Sequence[RunState], expected: Sequence[float]) -> float:
        """Wall time for the longest of the runs, within what limits and budget allow."""
        longest = self.longest_wall_minutes(shape_of(pack[0].work))
        wanted = max(wall_minutes(run, longest, minutes) for run, minutes in zip(pack, expected, strict=True))
        return min(wanted, self._affordable_minutes(shape_of(pack[0].work)))

    def minutes_to_end(self, shape: Shape, minutes: float) -> float:
        """Minutes until a run of that length would end here: each job that it is split into waits in the queue."""
        return num_jobs(minutes, self.longest_wall_minutes(shape)) * self.queue_minutes + minutes

    def most_excluded(self, nodes: int) -> int:
        """Most nodes that a job of `nodes` nodes may exclude."""
        there = min((limit.most for limit in self.limits if limit.resource is Resource.NODES_THERE), default=math.inf)
        if math.isinf(there):
            return 1
        return int(max(0, min(_MOST_EXCLUDED, _SHARE_EXCLUDED * there, there - nodes)))

    def add(self, request: JobRequest, ends_at: float) -> None:
        amount = amount_of(request)
        self.held = self.held + amount
        self.budget.held += amount.of[Resource.GPU_HOURS]
        self.num_queued += 1
        if ends_at > self.reserved_at:
            self.spare_nodes -= request.nodes

    def longest_behind(self, shape: Shape, free_at: float, now: float) -> float:
        """Minutes of the longest run of that shape that may take nodes that would be free from `free_at` on; 0 where
        none may."""
        if (
            now < self.closed_until
            or self.is_exceeded()
            or shape_verdict(shape, self.allocation).kind is not VerdictKind.RUN
        ):
            return 0.0
        amount = _behind(self._amount(shape, 0.0, 0.0))
        if verdict(amount, self.limits, self.held).kind is not VerdictKind.RUN:
            return 0.0
        return self._affordable_minutes(shape) if self.keeps_reservation_behind(shape[0], free_at) else 0.0

    def keeps_reservation_behind(self, nodes: int, free_at: float) -> bool:
        """Whether a successor does not delay the run with the reservation: it is as wide, or takes nodes that would be
        free only after that run has begun."""
        return nodes >= self.reserved_nodes or free_at > self.reserved_at

    def add_behind(self, request: JobRequest) -> None:
        """Adds a successor, on nodes that are held already."""
        amount = _behind(amount_of(request))
        self.held = self.held + amount
        self.budget.held += amount.of[Resource.GPU_HOURS]

    def is_exceeded(self, held: Amount | None = None) -> bool:
        """Whether more is held than a limit allows that nobody but the sweep keeps: one was lowered, or others have
        come. `held` takes the place of what is."""
        ours = self.held if held is None else held
        return any(
            limit.resource in OF_NODES
            and not limit.enforced
            and ours.of.get(limit.resource, 0.0) + limit.used_by_others > limit.most
            for limit in self.limits
        )

    def is_within_share(self, amount: Amount, resources: Collection[Resource], num_sweeps: int) -> bool:
        """Whether the amount is no more than an equal share of each limit on those resources."""
        return all(
            amount.of.get(limit.resource, 0.0) <= limit.most / num_sweeps
            for limit in self.limits
            if limit.resource in resources
        )

    def _amount(self, shape: Shape, minutes: float, wall_minutes: float) -> Amount:
        nodes, gpus, cpus = job_shape(shape, self.allocation)
        return asked(nodes, gpus, cpus, wall_minutes, nodes * gpus * max(minutes, wall_minutes) / 60)

    def _affordable_minutes(self, shape: Shape) -> float:
        nodes, gpus, _ = job_shape(shape, self.allocation)
        held = self.held.of.get(Resource.GPU_HOURS, 0.0)
        hours = [
            limit.most - limit.used_by_others - held for limit in self.limits if limit.resource is Resource.GPU_HOURS
        ]
        return min([*hours, self.budget.most - self.budget.held]) * 60 / (nodes * gpus) if gpus else math.inf

    def _keeps_reservation(self, nodes: int, ends_at: float) -> bool:
        """Whether a job of that width and end does not delay the reservation."""
        return ends_at <= self.reserved_at or nodes <= self.spare_nodes


def _behind(amount: Amount) -> Amount:
    """What a successor adds to the amounts of the job whose nodes it takes."""
    return Amount({resource: value for resource, value in amount.of.items() if resource not in OF_NODES})
