"""Sweeps played through the pure decision, on clusters that start each job at once."""

import heapq
from collections import Counter
from dataclasses import dataclass, field

from sweeps.engine.cluster import JobRequest, Limit, Resource
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, QuotaConfig
from sweeps.engine.decide import Plan, decide
from sweeps.engine.policy import Cause
from sweeps.engine.quota import VerdictKind, own_limits
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Need, Work

NOON = 1.8e9
"""Unix seconds at which histories begin."""


def work(name: str, nodes: int = 1, gpus: int = 8, minutes: float = 60.0) -> Work:
    return Work(name, f"runs/{name}", "m:f", need=Need(nodes, gpus, 1, minutes, minutes))


def state_of(*works: Work) -> SweepState:
    return SweepState.of(works, "s-")


def cluster_of(*quotas: QuotaConfig, whole_nodes: bool = True, gpus_per_node: int = 8) -> ClusterConfig:
    allocations = [
        AllocationConfig(f"a{n}", gpus_per_node=gpus_per_node, whole_nodes=whole_nodes, quota=quota)
        for n, quota in enumerate(quotas)
    ]
    return ClusterConfig("c", "slurm", allocations)


@dataclass
class History:
    """Plays a sweep on a cluster that starts each job at once. Checks what must hold at every step."""

    state: SweepState
    cluster: ClusterConfig
    others: dict[str, float] = field(default_factory=dict)
    """Nodes that others hold, by allocation."""
    endings: dict[str, list[Cause]] = field(default_factory=dict)
    """How the first attempts of a run end; the later ones finish."""
    speed: float = 1.0
    """True over expected minutes."""
    now: float = NOON
    ends: list[tuple[float, str]] = field(default_factory=list)
    node_minutes: float = 0.0
    finished: Counter[str] = field(default_factory=Counter)
    started_at: dict[str, float] = field(default_factory=dict)

    def limits(self) -> dict[str, list[Limit]]:
        found = {}
        for allocation in self.cluster.allocations:
            used = self.others.get(allocation.name, 0.0)
            limits = own_limits(allocation, self.state.own_limits)
            found[allocation.name] = [
                Limit(limit.name, limit.resource, limit.most, used if limit.resource is Resource.NODES else 0.0)
                for limit in limits
            ]
        return found

    def tick(self) -> Plan:
        plan = decide(self.state, self.cluster, self.limits(), self.now)
        for request in plan.submit:
            self._start(request)
        self.check()
        return plan

    def _start(self, request: JobRequest) -> None:
        assert request.tag not in self.state.jobs
        for attempt in request.attempts:
            run = self.state.runs[attempt.work.name]
            assert not run.done
            assert not run.in_flight
            assert run.held is None
            assert run.not_before <= self.now
            self.started_at.setdefault(attempt.work.name, self.now)
        self.state.apply({"event": "intended", "tag": request.tag, "time": self.now}, request)
        self.state.apply({"event": "submitted", "tag": request.tag, "job_id": "1", "time": self.now})
        self.state.apply({"event": "started", "tag": request.tag, "at": self.now, "nodes": ["n1"], "time": self.now})
        minutes = self.speed * max(attempt.work.need.expected_minutes for attempt in request.attempts)
        self.node_minutes += request.nodes * minutes
        heapq.heappush(self.ends, (self.now + 60 * minutes, request.tag))

    def check(self) -> None:
        for allocation in self.cluster.allocations:
            jobs = [job.request for job in self.state.jobs.values() if job.request.allocation == allocation.name]
            quota = allocation.quota
            if quota.nodes is not None and jobs:
                nodes = sum(request.nodes for request in jobs) + self.others.get(allocation.name, 0.0)
                assert nodes <= quota.nodes
            if quota.jobs is not None:
                assert len(jobs) <= quota.jobs
            for request in jobs:
                gpus = sum(attempt.work.need.gpus for attempt in request.attempts)
                assert gpus <= request.nodes * allocation.gpus_per_node
        names = [a.work.name for job in self.state.jobs.values() for a in job.request.attempts]
        assert len(names) == len(set(names))

    def end_next(self) -> None:
        self.now, tag = heapq.heappop(self.ends)
        request = self.state.jobs[tag].request
        endings = {}
        started_at = self.state.jobs[tag].started_at or self.now
        for attempt in request.attempts:
            name = attempt.work.name
            planned = self.endings.get(name, [])
            cause = planned.pop(0) if planned else Cause.FINISHED
            self.finished[name] += cause is Cause.FINISHED
            endings[name] = {
                "cause": cause.value, "detail": "", "advanced": False, "at": self.now, "started_at": started_at,
                "checkpoint_step": 0,
            }  # fmt: skip
        hours = request.nodes * request.gpus_per_node * (self.now - started_at) / 3600
        self.state.apply(
            {
                "event": "ended", "tag": tag, "time": self.now, "endings": endings, "gpu_hours": hours,
                "struck_nodes": [],
            }
        )  # fmt: skip

    def play(self) -> dict[str, VerdictKind]:
        """To the end; returns the verdicts on what was left."""
        for _ in range(100_000):
            plan = self.tick()
            if self.ends:
                self.end_next()
                continue
            later = [run.not_before for run in self.state.runs.values() if run.is_waiting and run.not_before > self.now]
            if not later:
                verdicts = {name: plan.verdict_of(run) for name, run in self.state.runs.items()}
                return {name: verdict.kind for name, verdict in verdicts.items() if verdict is not None}
            self.now = min(later)
        raise AssertionError("no end")


def decide_at_noon(history: History) -> Plan:
    return decide(history.state, history.cluster, history.limits(), NOON)
