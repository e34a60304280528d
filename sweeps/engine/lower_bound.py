"""How soon a sweep can end at best: no schedule under the quota is shorter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sweeps.engine.cluster import Resource
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.quota import own_limits
from sweeps.engine.work import Work
from sweeps.engine.works import Shape, shape_of


def lower_bound_minutes(works: Sequence[Work], config: ClusterConfig) -> float | None:
    """Lower bound on the makespan of a whole sweep; None where the quota counts no nodes."""
    minutes: dict[Shape, float] = {}
    for work in works:
        minutes[shape_of(work)] = minutes.get(shape_of(work), 0.0) + work.need.expected_minutes
    longest = max((work.need.expected_minutes for work in works), default=0.0)
    return makespan_lower_bound(minutes, longest, config, {})


def makespan_lower_bound(
    minutes: Mapping[Shape, float], longest: float, config: ClusterConfig, while_running: Mapping[str, float]
) -> float | None:
    """max(total node-minutes / nodes, longest run), over all allocations together.

    `minutes` are the sums of the runs of each shape; those that share a node count their share of it. `while_running`
    are the limits set since (`SweepState.own_limits`).
    """
    present = [shape for shape, total in minutes.items() if total > 0]
    # A limit of jobs is one of nodes where no job has more than one.
    counted = {Resource.NODES} | ({Resource.JOBS} if all(nodes == 1 for nodes, _, _ in present) else set())
    nodes_there = 0.0
    for allocation in config.allocations:
        limits = [limit.most for limit in own_limits(allocation, while_running) if limit.resource in counted]
        if not limits:
            return None
        nodes_there += min(limits)
    if nodes_there <= 0:
        return None
    per_node = max(allocation.gpus_per_node for allocation in config.allocations)
    return max(sum(node_share(shape, per_node) * minutes[shape] for shape in present) / nodes_there, longest)


def node_share(shape: Shape, gpus_per_node: int) -> float:
    """Nodes that a run of that shape takes; part of one where small runs share it."""
    nodes, gpus, _ = shape
    return nodes * gpus / gpus_per_node if gpus and gpus_per_node else nodes
