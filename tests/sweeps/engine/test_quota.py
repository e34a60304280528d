"""What limits say of a request: of one place, of several, of a time that must not be cut."""

from dataclasses import replace

import pytest

from sweeps.engine.cluster import Limit, Limits, Resource
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, QuotaConfig
from sweeps.engine.decide import decide
from sweeps.engine.job_needs import num_jobs, wall_minutes
from sweeps.engine.minutes import read_minutes
from sweeps.engine.policy import Cause
from sweeps.engine.quota import NOTHING, VerdictKind, all_limits, asked, best_verdict, longest_minutes, verdict
from sweeps.engine.run_states import AttemptState, RunState
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Adapter, Need, Work

NOON = 1.8e9
SHORT_AND_NARROW = [
    Limit("partition a MaxTime", Resource.WALL_MINUTES, 600, place="a"),
    Limit("partition a MaxNodes", Resource.NODES_PER_JOB, 2, place="a"),
    Limit("partition b MaxTime", Resource.WALL_MINUTES, 60, place="b"),
    Limit("partition b MaxNodes", Resource.NODES_PER_JOB, 8, place="b"),
]


def work(wall: float, nodes: int = 1, cpus: int = 1, resumes: bool = False) -> Work:
    need = Need(nodes, 8, cpus, wall, wall / 2)
    return Work(f"w{wall}", "runs/w", "m:f", need=need, adapter=Adapter(resumes=resumes))


@pytest.mark.parametrize(
    ("nodes", "minutes", "kind"),
    [(2, 600, "RUN"), (8, 60, "RUN"), (2, 601, "NEVER"), (8, 61, "NEVER"), (9, 1, "NEVER"), (1, 60, "RUN")],
)
def test_one_place_that_takes_a_job_is_enough(nodes: int, minutes: float, kind: str) -> None:
    answer = verdict(asked(nodes, 8, 1, minutes, 0), SHORT_AND_NARROW, NOTHING)
    assert answer.kind.value == kind
    # Where none does, the reason of each is told.
    assert kind == "RUN" or ("partition a" in answer.why and "partition b" in answer.why)


def test_the_longest_time_is_that_of_the_places_wide_enough() -> None:
    allocation = AllocationConfig("x", gpus_per_node=8)
    assert longest_minutes((2, 8, 1), allocation, SHORT_AND_NARROW).most == 600
    assert longest_minutes((4, 8, 1), allocation, SHORT_AND_NARROW).name == "partition b MaxTime"
    assert longest_minutes((2, 8, 1), replace(allocation, max_wall_minutes=30), SHORT_AND_NARROW).most == 30


def test_a_time_that_cannot_be_had_is_refused_by_name() -> None:
    allocations = [AllocationConfig("x", gpus_per_node=8, max_wall_minutes=5000)]
    limits = {"x": [Limit("QOS brief MaxWallPJ", Resource.WALL_MINUTES, 600)]}
    answer = best_verdict(work(601), allocations, limits)
    assert answer.kind is VerdictKind.NEVER
    assert answer.why.startswith("QOS brief MaxWallPJ=600 minutes of one job, asks 601: lower wall_minutes")
    assert best_verdict(work(600), allocations, limits).kind is VerdictKind.RUN
    # What goes on from a checkpoint may be cut.
    assert best_verdict(work(601, resumes=True), allocations, limits).kind is VerdictKind.RUN
    assert [num_jobs(minutes, 600) for minutes in (1, 600, 601, 1801)] == [1, 1, 2, 4]


def test_jobs_go_where_their_time_is_allowed_and_others_say_never() -> None:
    allocations = [
        AllocationConfig("short", gpus_per_node=8, max_wall_minutes=60, quota=QuotaConfig(nodes=4)),
        AllocationConfig("long", gpus_per_node=8, max_wall_minutes=600, quota=QuotaConfig(nodes=4)),
    ]
    cluster = ClusterConfig("c", "slurm", allocations)
    state = SweepState.of([work(900), work(300), work(50)], "s-")
    plan = decide(state, cluster, all_limits(cluster, Limits(), state), NOON)
    chosen = {request.attempts[0].work.name: (request.allocation, request.wall_minutes) for request in plan.submit}
    assert chosen == {"w300": ("long", 300), "w50": ("short", 50)}
    (never,) = plan.verdicts.values()
    assert never.kind is VerdictKind.NEVER
    assert "short: max_wall_minutes=60" in never.why
    assert not plan.unschedulable


def test_what_nobody_can_run_ends_a_sweep_in_words() -> None:
    cluster = ClusterConfig("c", "slurm", [AllocationConfig("a", gpus_per_node=8, max_wall_minutes=60)])
    state = SweepState.of([work(900)], "s-")
    plan = decide(state, cluster, all_limits(cluster, Limits(), state), NOON)
    assert plan.unschedulable


def test_too_many_cpus_of_a_node_are_never_had() -> None:
    limits = {"x": [Limit("partition gpu: nodes", Resource.CPUS_PER_NODE, 96)]}
    shared = AllocationConfig("x", gpus_per_node=8, cpus_per_node=1000)
    assert best_verdict(work(10, cpus=96), [shared], limits).kind is VerdictKind.RUN
    assert best_verdict(work(10, cpus=97), [shared], limits).kind is VerdictKind.NEVER
    # Of whole nodes a job asks for all that the file says they have.
    answer = best_verdict(work(10), [replace(shared, whole_nodes=True)], limits)
    assert answer.why == "partition gpu: nodes=96 CPUs of one node, asks 1,000"


def test_more_memory_than_a_node_has_is_never_had() -> None:
    limits = {"x": [Limit("partition gpu: nodes", Resource.MEMORY_PER_NODE, 1000)]}
    allocation = AllocationConfig("x", gpus_per_node=8, memory_gigabytes=1001)
    answer = best_verdict(work(10), [allocation], limits)
    assert answer.why == "partition gpu: nodes=1,000 GiB of one node, asks 1,001"
    own = replace(work(10), need=replace(work(10).need, memory_gigabytes=10))
    assert best_verdict(own, [allocation], limits).kind is VerdictKind.RUN


@pytest.mark.parametrize(
    ("wall", "expected", "timeouts", "asked_for"),
    [(3, 100, 0, 3), (3, 1, 2, 12), (0, 100, 0, 150), (0, 1, 0, 10), (0, 1, 1, 20), (900, 1, 0, 600)],
)
def test_the_time_asked_for_is_what_was_said(wall: float, expected: float, timeouts: int, asked_for: float) -> None:
    attempts = [AttemptState(n, "t", "a", 8, 0.0, cause=Cause.TIMEOUT) for n in range(timeouts)]
    assert wall_minutes(RunState(work(wall), attempts=attempts), 600.0, expected) == asked_for


@pytest.mark.parametrize(
    ("value", "minutes"),
    [
        (90, 90.0),
        (0.5, 0.5),
        ("90", 90.0),
        ("90:30", 90.5),
        ("1:30:00", 90.0),
        ("1-00:00:00", 1440.0),
        ("2-12", 3600.0),
        ("a day", None),
        ("-5", None),
        (True, None),
        (None, None),
        (float("inf"), None),
    ],
)
def test_times_are_read_as_slurm_reads_them(value: object, minutes: float | None) -> None:
    assert read_minutes(value) == minutes
