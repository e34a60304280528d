"""Jobs queued behind others: how many, behind which, who must go again, and that limits hold however jobs end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decide import NOON, cluster_of, work

from sweeps.engine.cluster import JobRequest
from sweeps.engine.cluster_config import ClusterConfig, QuotaConfig
from sweeps.engine.decide import Plan, decide
from sweeps.engine.quota import own_limits
from sweeps.engine.successors import Ahead
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Adapter, Work

TICK = 30.0
AHEAD = Ahead(2 * TICK)
ENDED = {"detail": "", "checkpoint_step": 0}


@dataclass
class Queue:
    """A sweep and a scheduler that starts each job as soon as those that it waits for have ended."""

    works: Sequence[Work]
    cluster: ClusterConfig
    now: float = NOON
    ahead: Ahead = AHEAD
    waits_for: dict[str, set[str]] = field(default_factory=dict)
    """Tags of unfinished jobs, by the tag of each pending job."""
    at_work: dict[str, JobRequest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = SweepState.of(self.works, "s-")

    def look(self) -> Plan:
        limits = {one.name: own_limits(one, self.state.own_limits) for one in self.cluster.allocations}
        plan = decide(self.state, self.cluster, limits, self.now, ahead=self.ahead)
        for request in plan.submit:
            self.tell("intended", request.tag, request)
            self.tell("submitted", request.tag, job_id=request.tag)
            self.waits_for[request.tag] = {tag for tag in request.after if tag in self.state.jobs}
        self.start()
        return plan

    def tell(self, event: str, tag: str, request: JobRequest | None = None, **values: object) -> None:
        self.state.apply({"event": event, "tag": tag, "time": self.now, **values}, request)

    def start(self) -> None:
        for tag in [tag for tag, others in self.waits_for.items() if not others]:
            del self.waits_for[tag]
            self.at_work[tag] = self.state.jobs[tag].request
            self.tell("started", tag, at=self.now, nodes=["n1"])

    def end(self, tag: str, cause: str = "finished") -> None:
        """Ends a job that runs, or cancels one that waits."""
        self.at_work.pop(tag, None)
        self.waits_for.pop(tag, None)
        for others in self.waits_for.values():
            others.discard(tag)
        names = [attempt.work.name for attempt in self.state.jobs[tag].request.attempts]
        ending = {**ENDED, "cause": cause, "started_at": self.now, "at": self.now}
        self.tell("ended", tag, endings=dict.fromkeys(names, ending), gpu_hours=0.0, struck_nodes=[])
        self.start()

    def nodes_at_work(self) -> int:
        return sum(request.nodes for request in self.at_work.values())


def queue_of(*works: Work, nodes: int = 2, **changes: object) -> Queue:
    return Queue(works, cluster_of(QuotaConfig(nodes=nodes)), **changes)  # type: ignore[arg-type]


def short(number: int, seconds: float = 20.0) -> list[Work]:
    return [work(f"r{n}", minutes=seconds / 60) for n in range(number)]


def behind(plan: Plan) -> Counter[int]:
    return Counter(len(request.after) for request in plan.submit)


def test_two_ticks_of_work_are_queued_on_each_node() -> None:
    assert behind(queue_of(*short(20)).look()) == {0: 2, 1: 2, 2: 2}
    assert behind(queue_of(*short(20, seconds=45)).look()) == {0: 2, 1: 2}
    assert behind(queue_of(*short(200, seconds=0.1)).look()) == dict.fromkeys(range(32), 2)


def test_a_long_run_gets_its_successor_just_before_its_end() -> None:
    queue = queue_of(*short(6, seconds=600))
    plan = queue.look()
    assert behind(plan) == {0: 2}
    assert plan.due_at == NOON + 540
    queue.now += 539
    assert not queue.look().submit
    queue.now += 1
    assert behind(queue.look()) == {}
    queue.now += 1
    assert behind(queue.look()) == {1: 2}


def test_a_successor_waits_for_all_before_it_and_not_for_a_job_without_a_number() -> None:
    queue = queue_of(*short(9), nodes=1)
    first, second, third = queue.look().submit
    assert (first.after, second.after, third.after) == ((), (first.tag,), (first.tag, second.tag))
    queue.end(first.tag)
    queue.state.jobs[third.tag].job_id = None
    assert not queue.look().submit


def test_a_job_that_will_want_more_time_keeps_its_nodes() -> None:
    cluster = cluster_of(QuotaConfig(nodes=1))
    cluster.allocations[0].max_wall_minutes = 0.5
    works = [replace(one, adapter=Adapter(resumes=True)) for one in short(3, seconds=60)]
    assert behind(Queue(works, cluster).look()) == {0: 1}


@pytest.mark.parametrize(("num_sweeps", "chains"), [(1, 4), (2, 2), (3, 1), (5, 0)])
def test_successors_of_several_sweeps_keep_an_equal_share(num_sweeps: int, chains: int) -> None:
    queue = queue_of(*short(20, seconds=45), nodes=4, ahead=replace(AHEAD, num_sweeps=num_sweeps))
    assert behind(queue.look()) == +Counter({0: 4, 1: chains})


def test_successors_beyond_the_share_go_when_another_sweep_comes() -> None:
    queue = queue_of(*short(20, seconds=45), nodes=4)
    queue.look()
    queue.ahead = replace(AHEAD, num_sweeps=2)
    assert len(queue.look().cancel_pending) == 2


def test_successors_leave_other_sweeps_their_share_of_submissions() -> None:
    cluster = cluster_of(QuotaConfig(nodes=4, submitted_jobs=12))
    assert len(Queue(short(40), cluster).look().submit) == 12
    assert len(Queue(short(40), cluster, ahead=replace(AHEAD, num_sweeps=2)).look().submit) == 6


def test_pause_hold_and_a_lowered_quota_take_successors_back() -> None:
    for event, values, expected in (
        ("paused", {"paused": True}, {"s-000003", "s-000004"}),
        ("held", {"runs": ["r3"], "why": "by hand"}, {"s-000004"}),
        ("own_limits", {"limits": {"nodes": 1}}, {"s-000003", "s-000004"}),
    ):
        queue = queue_of(*short(4, seconds=45))
        queue.look()
        queue.tell(event, "", **values)
        assert set(queue.look().cancel_pending) == expected, event


def test_a_wider_run_that_comes_back_gets_the_nodes_before_successors() -> None:
    wide = work("wide", nodes=2, minutes=1)
    queue = queue_of(wide, *short(4, seconds=45))
    (first,) = queue.look().submit
    queue.end(first.tag, "preempted")
    successors = [request.tag for request in queue.look().submit if request.after]
    assert successors
    queue.now += 10
    assert set(queue.look().cancel_pending) == set(successors)


def test_a_successor_behind_an_overdue_job_takes_nodes_that_nobody_wants() -> None:
    queue = queue_of(*short(3, seconds=45))
    first, second, third = queue.look().submit
    queue.end(next(tag for tag in (first.tag, second.tag) if tag not in third.after))
    queue.now += 100
    # It is expected to end within two ticks, as it is overdue by less.
    assert queue.look().cancel_pending == []
    queue.now += 10
    assert queue.look().cancel_pending == [third.tag]


def test_no_successor_is_wider_than_the_job_before_it() -> None:
    works = [work("narrow", minutes=2), *(work(f"w{n}", nodes=2, minutes=0.5) for n in range(3))]
    requests = queue_of(*works, nodes=4).look().submit
    widths = {request.tag: request.nodes for request in requests}
    assert all(request.nodes <= widths[tag] for request in requests for tag in request.after)


@given(seed=st.integers(0, 2**32), nodes=st.integers(1, 5), whole=st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_limits_hold_however_jobs_end_and_whoever_is_cancelled(seed: int, nodes: int, whole: bool) -> None:
    rng = random.Random(seed)
    works = [
        work(f"r{n}", rng.randint(1, nodes), rng.choice([4, 8]) if whole else 8, rng.choice([0.2, 0.5, 5.0]))
        for n in range(40)
    ]
    cluster = cluster_of(QuotaConfig(nodes=nodes, submitted_jobs=rng.choice([None, 2 * nodes])), whole_nodes=whole)
    queue = Queue(works, cluster)
    for _ in range(120):
        what = rng.random()
        jobs = list(queue.state.jobs)
        if what < 0.4:
            for tag in queue.look().cancel_pending:
                queue.tell("withdrawing", tag)
        elif jobs and what < 0.9:
            queue.end(rng.choice(list(queue.at_work) if queue.at_work and what < 0.7 else jobs), "preempted")
        queue.now += rng.choice([0.0, 10.0, 100.0])
        assert queue.nodes_at_work() <= nodes
        most = cluster.allocations[0].quota.submitted_jobs
        assert most is None or len(queue.state.jobs) <= most
