"""The main memory that a job asks for: what its runs need, more after they ran out of it."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.engine.cluster_config import AllocationConfig
from sweeps.engine.policy import RULES
from sweeps.engine.run_states import RunState


def job_memory(pack: Sequence[RunState], allocation: AllocationConfig) -> tuple[float | None, bool]:
    """Return GiB of each node for runs that share it, None for the cluster's default, and whether it could be more.

    Runs share nodes only where a job has its nodes alone: what they ask for is the node's memory as a whole.
    """
    asked = [_of(run, allocation) for run in pack]
    known = [gigabytes for gigabytes, _ in asked if gigabytes is not None]
    return max(known, default=None), any(can_grow for _, can_grow in asked)


def _of(run: RunState, allocation: AllocationConfig) -> tuple[float | None, bool]:
    need = run.work.need
    gigabytes = allocation.memory_gigabytes if need.memory_gigabytes is None else need.memory_gigabytes
    if gigabytes is None:
        return None, False
    most = allocation.max_memory_gigabytes if need.max_memory_gigabytes is None else need.max_memory_gigabytes
    doublings = sum(RULES[attempt.cause].doubles_memory for attempt in run.attempts if attempt.cause is not None)
    most = max(gigabytes, most or 0.0)
    wanted = min(most, gigabytes * 2.0**doublings)
    return wanted, wanted < most
