"""Fault models: what goes wrong on a simulated cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FaultModel:
    """Rates and shares of faults; by default there are none."""

    spread: float = 0.0
    """Sigma of the log-normal ratio of actual to expected minutes."""
    node_failures_per_day: float = 0.0
    """Rate for each node."""
    preemptions_per_day: float = 0.0
    """Rate for each job."""
    crashes: float = 0.0
    """Share of attempts that crash at a random time."""
    broken: float = 0.0
    """Share of runs that crash in every attempt."""
    out_of_memory: float = 0.0
    """Share of runs that do not fit in memory until the micro-batch is halved once."""
    hangs: float = 0.0
    """Share of attempts that stop answering."""
    lost_answers: float = 0.0
    """Share of submissions whose answer never comes; half of them were accepted."""
    refusals: float = 0.0
    """Share of submissions that are refused for now."""
    outages: float = 0.0
    """Share of observations that get no answer."""
    late_seconds: float = 0.0
    """Delay between the acceptance of a job and its first observation."""
    unlisted: float = 0.0
    """Share of jobs that listings leave out from their start on; asked for by number, the cluster knows them while they
    wait or run."""
    slow_nodes: Mapping[str, float] = field(default_factory=dict)
    """How many times longer all work takes, by node."""
    background_load: float = 0.0
    """Mean share of the nodes that other users' jobs hold."""
    node_limit: int | None = None
    """Nodes of an allocation that the scheduler lets this user's jobs hold at once; a job too many waits."""
    submit_limit: int | None = None
    """Jobs of an allocation that may wait and run at once; one too many is refused for now."""
    seed: int = 0


FAIR = FaultModel(spread=0.1)
ROUGH = FaultModel(
    spread=0.3,
    node_failures_per_day=0.05,
    preemptions_per_day=0.5,
    crashes=0.02,
    broken=0.01,
    out_of_memory=0.03,
    hangs=0.01,
    lost_answers=0.02,
    refusals=0.05,
    outages=0.02,
    late_seconds=20.0,
)
FAULT_MODELS = {"calm": FaultModel(), "fair": FAIR, "rough": ROUGH}
