"""Which of several allocations a run takes, and when a pending job moves to another."""

import itertools

from histories import NOON, History, cluster_of, decide_at_noon, state_of, work

from sweeps.engine.cluster import JobRequest
from sweeps.engine.cluster_config import ClusterConfig, QuotaConfig
from sweeps.engine.decide import decide
from sweeps.engine.work import Attempt


def priced(*prices: float | dict[str, float], nodes: int = 2) -> ClusterConfig:
    cluster = cluster_of(*[QuotaConfig(nodes=nodes)] * len(prices))
    for allocation, price in zip(cluster.allocations, prices, strict=True):
        allocation.price_per_gpu_hour = price
    return cluster


def test_of_equal_allocations_the_cheapest_is_filled_first() -> None:
    works = [work(f"r{n}") for n in range(5)]
    history = History(state_of(*works), priced(2.0, {"p": 1.0, "q": 1.5}, 3.0))
    assert [request.allocation for request in history.tick().submit] == ["a1", "a1", "a0", "a0", "a2"]


def test_an_earlier_end_counts_more_than_a_price() -> None:
    history = History(state_of(*[work(f"r{n}") for n in range(3)]), priced(1.0, 2.0))
    pend(history, "r0", "a0", waited=10)
    assert [request.allocation for request in decide_at_noon(history).submit] == ["a1", "a1"]


def pend(history: History, name: str, allocation: str, waited: float) -> str:
    """A job that has been pending for that many minutes."""
    tag = f"s-{len(history.state.jobs) + 1:06d}"
    job = JobRequest(tag, allocation, (Attempt(history.state.runs[name].work, 1),), 1, 8, 1, 90.0)
    history.state.apply({"event": "intended", "tag": tag, "time": history.now - 60 * waited}, job)
    history.state.apply({"event": "submitted", "tag": tag, "job_id": "1", "time": history.now})
    return tag


def moves_of(history: History) -> dict[str, str]:
    plan = decide(history.state, history.cluster, history.limits(), history.now)
    for move in plan.moves:
        event = {"event": "withdrawing", "tag": move.tag, "to": move.to, "waited_minutes": move.waited_minutes}
        history.state.apply({**event, "time": history.now})
        history.state.apply({"event": "refused", "tag": move.tag, "why": "", "time": history.now})
    return {move.tag: move.to for move in plan.moves}


def test_pending_jobs_move_to_a_freed_allocation_without_a_count() -> None:
    history = History(state_of(*[work(f"r{n}") for n in range(3)]), cluster_of(*[QuotaConfig(nodes=2)] * 2))
    tags = [pend(history, "r0", "a0", waited=30), pend(history, "r1", "a0", waited=6)]
    history.others = {"a1": 2}
    assert moves_of(history) == {}
    history.others = {"a1": 1}
    # The run that waits for a first job comes before those that are pending.
    assert [request.allocation for request in decide_at_noon(history).submit] == ["a1"]
    history.state.apply({"event": "held", "runs": ["r2"], "why": "by hand", "time": NOON})
    # Of two the newer goes: the older one keeps its place.
    assert moves_of(history) == {tags[1]: "a1"}
    assert history.state.runs["r1"].is_waiting
    assert not history.state.runs["r1"].attempts
    (request,) = decide_at_noon(history).submit
    assert (request.allocation, request.attempts[0].number) == ("a1", 1)


def test_jobs_keep_their_place_where_nothing_is_better() -> None:
    history = History(state_of(work("r0"), work("r1")), cluster_of(*[QuotaConfig(nodes=2)] * 2))
    pend(history, "r0", "a0", waited=4.9)
    assert moves_of(history) == {}
    history.now += 60
    # A job of ours waits in the other one too.
    other = pend(history, "r1", "a1", waited=4)
    assert moves_of(history) == {}
    history.state.apply({"event": "started", "tag": other, "at": history.now - 235, "nodes": [], "time": history.now})
    assert moves_of(history) == {"s-000001": "a1"}


def test_jobs_do_not_go_back_and_forth_between_two_queues() -> None:
    history = History(state_of(work("r0")), cluster_of(*[QuotaConfig(nodes=2)] * 2))
    moved_at = []
    for minute in range(600):
        history.now = NOON + 60 * minute
        if moves_of(history):
            moved_at.append(minute)
        for request in decide(history.state, history.cluster, history.limits(), history.now).submit:
            pend(history, "r0", request.allocation, waited=0)
    # In each of the two it stays twice as long as before.
    assert 4 <= len(moved_at) <= 12
    stays = [later - earlier for earlier, later in itertools.pairwise([0, *moved_at])]
    assert all(later >= 2 * earlier for earlier, later in zip(stays, stays[2:], strict=False))
