"""What jobs in the queue hold of an allocation and of its limits."""

from dataclasses import replace

import pytest

from sweeps.clusters.slurm.parse import QueuedJob, parse_squeue
from sweeps.clusters.slurm.usage import jobs_in, resources_of, without_own
from sweeps.engine.cluster import Limit, Resource
from sweeps.engine.cluster_config import AllocationConfig

LINE = (
    "5|0|RUNNING|2|16|2|cpu=16,node=2,gres/gpu=8|N/A|N/A|N/A|gpu|lab|normal|30:00|N/A|N/A|N/A|n[1-2]|None|(null)|w|"
    "(null)|"
)
(RUNNING,) = parse_squeue(LINE)
PENDING = replace(RUNNING, state="PENDING", nodes=())


def allocation(**options: str) -> AllocationConfig:
    return AllocationConfig("a", options=options)


def test_pending_jobs_hold_what_they_ask_for() -> None:
    held = resources_of([RUNNING, PENDING])
    assert held == {
        Resource.NODES: 4, Resource.GPUS: 16, Resource.CPUS: 32, Resource.JOBS: 2, Resource.SUBMITTED: 2,
    }  # fmt: skip


def waits_for(number: str, *others: str, nodes: int = 2) -> QueuedJob:
    return replace(PENDING, job_id=number, num_nodes=nodes, after=frozenset(others))


@pytest.mark.parametrize(
    ("jobs", "nodes", "num_jobs"),
    [
        ([RUNNING, waits_for("6", "5")], 2, 1),
        # Squeue's order is not that of the submissions.
        ([waits_for("10", "5", "9"), RUNNING, waits_for("9", "5")], 2, 1),
        ([RUNNING, waits_for("6", "5", nodes=3)], 3, 1),
        ([RUNNING, waits_for("6", "5"), waits_for("7", "5")], 4, 2),
        # Were the second cancelled, the third would start beside the first.
        ([RUNNING, waits_for("6", "5"), waits_for("7", "6")], 4, 2),
        # Whatever it waits for, it is no job that is counted here.
        ([RUNNING, waits_for("6", "99")], 4, 2),
    ],
)
def test_a_job_that_waits_for_anothers_end_takes_its_place(jobs: list[QueuedJob], nodes: int, num_jobs: int) -> None:
    held = resources_of(jobs)
    assert (held[Resource.NODES], held[Resource.JOBS], held[Resource.SUBMITTED]) == (nodes, num_jobs, len(jobs))


@pytest.mark.parametrize(
    ("job", "options", "default", "expected"),
    [
        (RUNNING, {}, None, True),
        (RUNNING, {}, "gpu", True),
        (RUNNING, {}, "cpu", False),
        (RUNNING, {"partition": "cpu,gpu"}, None, True),
        (RUNNING, {"partition": "cpu,debug"}, None, False),
        (replace(PENDING, partition="debug,gpu"), {"partition": "cpu,gpu"}, None, True),
        (RUNNING, {"partition": "gpu", "account": "other"}, None, False),
        (RUNNING, {"partition": "gpu", "qos": "normal"}, None, True),
    ],
)
def test_a_job_counts_where_it_runs_or_may(
    job: QueuedJob, options: dict[str, str], default: str | None, expected: bool
) -> None:
    assert bool(jobs_in(allocation(**options), [job], default)) == expected


def test_own_jobs_are_taken_off_a_limit_as_slurm_counts_them() -> None:
    nodes = Limit("GrpTRES node", Resource.NODES, 8, used_by_others=3)
    submitted = Limit("MaxSubmitJobs", Resource.SUBMITTED, 8, used_by_others=3)
    assert without_own(nodes, [RUNNING, PENDING]).used_by_others == 1
    assert without_own(submitted, [RUNNING, PENDING]).used_by_others == 1
