"""Histories of sweeps, played through the pure decision: quotas hold, nothing runs twice, nothing starves."""

import heapq
import itertools
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.engine.cluster import JobRequest, Limit, Resource
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, QuotaConfig
from sweeps.engine.decide import Plan, decide
from sweeps.engine.policy import Cause
from sweeps.engine.quota import VerdictKind, own_limits
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Attempt, Need, Work

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


needs = st.one_of(
    st.builds(lambda gpus, minutes: (1, gpus, minutes), st.sampled_from([1, 2, 4, 8]), st.integers(1, 600)),
    st.builds(lambda nodes, minutes: (nodes, 8, minutes), st.integers(2, 6), st.integers(1, 600)),
)
failures = st.lists(
    st.sampled_from([Cause.CRASH, Cause.NODE_FAILURE, Cause.OUT_OF_MEMORY, Cause.PREEMPTED, Cause.TIMEOUT]), max_size=3
)


@given(
    asked=st.lists(st.tuples(needs, failures), min_size=1, max_size=40),
    quotas=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    others=st.integers(0, 2),
    most_jobs=st.one_of(st.none(), st.integers(1, 5)),
    whole_nodes=st.booleans(),
    speed=st.sampled_from([0.3, 1.0, 1.7]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_history_keeps_the_quota_and_settles_every_run(
    asked: list[tuple[tuple[int, int, float], list[Cause]]],
    quotas: list[int],
    others: int,
    most_jobs: int | None,
    whole_nodes: bool,
    speed: float,
) -> None:
    works = [work(f"r{n}", *need) for n, (need, _) in enumerate(asked)]
    cluster = cluster_of(*(QuotaConfig(nodes=q, jobs=most_jobs) for q in quotas), whole_nodes=whole_nodes)
    endings = {f"r{n}": list(causes) for n, (_, causes) in enumerate(asked)}
    history = History(state_of(*works), cluster, {"a0": others}, endings, speed)
    verdicts = history.play()
    # What others hold in the first allocation, they hold for ever here.
    widest = max([quotas[0] - others, *quotas[1:]])
    for run in history.state.runs.values():
        need = run.work.need
        if need.nodes > max(quotas):
            assert verdicts[run.work.name] is VerdictKind.NEVER
        elif need.nodes <= widest:
            assert run.done or run.held is not None
            assert history.finished[run.work.name] == run.done
    assert all(count <= 1 for count in history.finished.values())


def test_a_wide_run_is_not_starved_by_narrow_ones() -> None:
    # Staggered narrow runs: without a reservation four nodes would never be free together.
    narrow = [work(f"n{n:03d}", minutes=60 + n % 7) for n in range(100)]
    state = state_of(*narrow)
    history = History(state, cluster_of(QuotaConfig(nodes=4)))
    history.tick()
    state.add(work("wide", nodes=4))
    history.play()
    assert history.started_at["wide"] <= NOON + 60 * 67


def test_short_runs_fill_the_gap_before_a_reservation() -> None:
    state = state_of(work("long", minutes=600), work("late", minutes=120))
    history = History(state, cluster_of(QuotaConfig(nodes=2)))
    history.tick()  # both start
    history.state.add(work("wide", nodes=2, minutes=60))
    history.state.add(work("short", minutes=400))
    history.state.add(work("longer", minutes=500))
    history.play()
    # "late" leaves a node free for 480 minutes before "wide" can start: "short" fits, "longer" would push it back.
    assert history.started_at["short"] == NOON + 120 * 60
    assert history.started_at["wide"] == NOON + 600 * 60
    assert history.started_at["longer"] > history.started_at["wide"]


def test_small_runs_share_whole_nodes_and_nothing_else_does() -> None:
    works = [work(f"one{n}", gpus=1) for n in range(9)] + [work(f"four{n}", gpus=4) for n in range(2)]
    history = History(state_of(*works), cluster_of(QuotaConfig(nodes=10)))
    plan = history.tick()
    shared = sorted(sorted(attempt.work.need.gpus for attempt in request.attempts) for request in plan.submit)
    assert shared == [[1], [1] * 8, [4, 4]]
    apart = History(state_of(*works), cluster_of(QuotaConfig(nodes=11), whole_nodes=False)).tick()
    assert all(len(request.attempts) == 1 for request in apart.submit)


def test_what_a_pack_leaves_free_takes_narrower_runs_not_longer() -> None:
    works = [work("four", gpus=4, minutes=60), work("two", gpus=2, minutes=60), work("long", gpus=1, minutes=90)]
    works += [work(f"one{n}", gpus=1, minutes=30) for n in range(3)]
    plan = History(state_of(*works), cluster_of(QuotaConfig(nodes=10))).tick()
    packs = [[attempt.work.name for attempt in request.attempts] for request in plan.submit]
    assert packs == [["four", "two", "one0", "one1"], ["long", "one2"]]


def test_the_next_run_goes_where_the_queue_is_empty() -> None:
    works = [work(f"r{n}") for n in range(6)]
    history = History(state_of(*works), cluster_of(QuotaConfig(nodes=3), QuotaConfig(nodes=3)))
    queued = JobRequest("s-000001", "a0", (Attempt(works[0], 1),), 1, 8, 1, 60.0)
    history.state.apply({"event": "intended", "tag": queued.tag, "time": NOON - 600}, queued)
    plan = history.tick()
    assert [request.allocation for request in plan.submit] == ["a1", "a1", "a1", "a0", "a0"]


def test_a_long_run_goes_where_its_pieces_need_not_queue() -> None:
    cluster = cluster_of(QuotaConfig(nodes=3), QuotaConfig(nodes=3))
    cluster.allocations[0].max_wall_minutes = 30
    long, short, standing = work("long", minutes=300), work("short", minutes=10), work("standing")
    history = History(state_of(long, short, standing), cluster)
    for allocation, minutes in (("a0", 2), ("a1", 8)):
        job = JobRequest(f"s-{allocation}", allocation, (Attempt(standing, 1),), 1, 8, 1, 60.0)
        history.state.apply({"event": "intended", "tag": job.tag, "time": NOON - 60 * minutes}, job)
    chosen = {request.attempts[0].work.name: request.allocation for request in decide_at_noon(history).submit}
    assert chosen == {"long": "a1", "short": "a0"}


def decide_at_noon(history: History) -> Plan:
    return decide(history.state, history.cluster, history.limits(), NOON)


def test_a_lowered_quota_takes_back_the_newest_waiting_jobs() -> None:
    works = [work(f"r{n}") for n in range(4)]
    history = History(state_of(*works), cluster_of(QuotaConfig(nodes=4)))
    for n, one in enumerate(works):
        job = JobRequest(f"s-{n}", "a0", (Attempt(one, 1),), 1, 8, 1, 60.0)
        history.state.apply({"event": "intended", "tag": job.tag, "time": NOON}, job)
    history.state.apply({"event": "started", "tag": "s-3", "at": NOON, "nodes": ["n1"], "time": NOON})
    assert decide_at_noon(history).cancel_pending == []
    history.state.apply({"event": "own_limits", "limits": {"nodes": 2}, "time": NOON})
    plan = decide_at_noon(history)
    assert plan.cancel_pending == ["s-2", "s-1"]
    assert not plan.submit
    for tag in plan.cancel_pending:
        history.state.apply({"event": "withdrawing", "tag": tag, "time": NOON})
    assert decide_at_noon(history).cancel_pending == []
    history.others = {"a0": 1}
    assert decide_at_noon(history).cancel_pending == ["s-0"]


def test_a_clusters_limit_takes_back_only_what_could_never_start() -> None:
    works = [work("wide", nodes=2), work("narrow")]
    history = History(state_of(*works), cluster_of(QuotaConfig(nodes=4)))
    for one in works:
        job = JobRequest(f"s-{one.name}", "a0", (Attempt(one, 1),), one.need.nodes, 8, 1, 60.0)
        history.state.apply({"event": "intended", "tag": job.tag, "time": NOON}, job)
    lowered = {"a0": [Limit("QOS normal GrpTRES node", Resource.NODES, 1, enforced=True)]}
    assert decide(history.state, history.cluster, lowered, NOON).cancel_pending == ["s-wide"]


def test_what_the_last_attempt_measured_decides_the_time_asked_for() -> None:
    unmeasured = Work("a", "runs/a", "m:f", need=Need(1, 8, 1, 0.0, 600.0))
    history = History(state_of(unmeasured), cluster_of(QuotaConfig(nodes=1)))
    (first,) = history.tick().submit
    assert first.wall_minutes == 900
    ending = {"cause": "preempted", "detail": "", "checkpoint_step": 7, "minutes_left": 40.0}
    ending |= {"started_at": NOON, "at": NOON}
    history.state.apply(
        {
            "event": "ended",
            "tag": first.tag,
            "time": NOON,
            "endings": {"a": ending},
            "gpu_hours": 0.0,
            "struck_nodes": [],
        }
    )
    history.now += 60
    (second,) = history.tick().submit
    assert second.wall_minutes == 60
    assert second.attempts[0].work.need.expected_minutes == 40


def test_a_run_too_large_says_which_limit_and_what_was_asked() -> None:
    history = History(state_of(work("wide", nodes=4)), cluster_of(QuotaConfig(nodes=3)))
    verdict = history.tick().verdict_of(history.state.runs["wide"])
    assert verdict is not None
    assert verdict.kind is VerdictKind.NEVER
    assert "quota.nodes=3" in verdict.why
    assert "4" in verdict.why


def test_a_waiting_run_says_for_which_limit_and_how_much_is_used() -> None:
    history = History(state_of(work("a"), work("b")), cluster_of(QuotaConfig(nodes=1)))
    plan = history.tick()
    (verdict,) = plan.verdicts.values()
    assert verdict.kind is VerdictKind.WAIT
    assert "quota.nodes" in verdict.why
    assert "1 of 1" in verdict.why


def test_gpu_hours_are_never_overspent() -> None:
    works = [work(f"r{n}", minutes=60) for n in range(10)]
    history = History(state_of(*works), cluster_of(QuotaConfig(nodes=2, gpu_hours=8 * 5)))
    verdicts = history.play()
    assert sum(history.finished.values()) == 5
    assert set(verdicts.values()) == {VerdictKind.WAIT}


def test_a_pause_and_a_refusal_submit_nothing() -> None:
    history = History(state_of(work("a")), cluster_of(QuotaConfig(nodes=1)))
    history.state.apply({"event": "paused", "paused": True, "time": NOON})
    assert not history.tick().submit
    history.state.apply({"event": "paused", "paused": False, "time": NOON})
    history.state.apply({"event": "deferred", "allocation": "a0", "until": NOON + 60, "time": NOON})
    assert not history.tick().submit
    history.now = NOON + 60
    assert history.tick().submit


def test_own_limits_changed_while_running_bind_at_once() -> None:
    history = History(state_of(*(work(f"r{n}") for n in range(8))), cluster_of(QuotaConfig(nodes=2)))
    assert len(history.tick().submit) == 2
    history.state.apply({"event": "own_limits", "limits": {"nodes": 5}, "time": NOON})
    history.cluster.allocations[0].quota.nodes = 5  # for the check
    assert len(history.tick().submit) == 3


def test_the_published_study_ends_near_the_lower_bound() -> None:
    # 2,200 runs of the shapes of five sizes: cost grows with the square of the size, width with the size.
    shapes = [(1, 1, 3.0, 900), (1, 2, 12.0, 600), (1, 8, 30.0, 400), (2, 8, 60.0, 250), (8, 8, 240.0, 50)]
    works = [
        work(f"{nodes}x{gpus}-{n}", nodes, gpus, minutes * (1 + (n * 7919 % 97) / 97))
        for nodes, gpus, minutes, count in shapes
        for n in range(count)
    ]
    history = History(state_of(*works), cluster_of(QuotaConfig(nodes=16)))
    history.play()
    assert all(run.done for run in history.state.runs.values())
    needed = sum(w.need.nodes * w.need.gpus_per_node / 8 * w.need.expected_minutes for w in works) / 16
    bound = max(needed, *(w.need.expected_minutes for w in works))
    assert (history.now - NOON) / 60 <= 1.05 * bound


def test_a_cap_on_gpu_hours_binds_over_all_allocations_together() -> None:
    works = [work(f"r{n}", minutes=60) for n in range(10)]
    history = History(state_of(*works), cluster_of(QuotaConfig(nodes=1), QuotaConfig(nodes=2)))
    history.state.apply({"event": "own_limits", "limits": {"max_gpu_hours": 8 * 4.0}, "time": NOON})
    history.play()
    assert sum(history.finished.values()) == 4
    assert history.tick().unschedulable


def test_bad_nodes_are_forgiven_and_never_too_many_at_once() -> None:
    state = state_of(work("a"))
    for n in range(30):
        state.apply(
            {
                "event": "ended",
                "tag": "none",
                "time": NOON + n,
                "endings": {},
                "gpu_hours": 0.0,
                "struck_nodes": [f"n{n}"],
            }
        )
    cluster = cluster_of(QuotaConfig(nodes=64))

    def avoided(nodes_there: int | None, seconds: float = 60) -> tuple[str, ...]:
        there = [] if nodes_there is None else [Limit("nodes", Resource.NODES_THERE, nodes_there)]
        return decide(state, cluster, {"a0": there}, NOON + seconds).submit[0].excluded_nodes

    assert avoided(64) == tuple(f"n{n}" for n in range(29, 21, -1))
    assert avoided(8) == ("n29", "n28")
    # Of one or two nodes none can be spared: the job would wait for ever.
    assert avoided(2) == avoided(1) == ()
    assert len(avoided(None)) == 1
    assert avoided(64, 24 * 3600) == ()


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


def test_two_jobs_that_share_a_node_count_as_two_nodes() -> None:
    works = [work(f"r{n}", gpus=1) for n in range(3)]
    history = History(state_of(*works), cluster_of(QuotaConfig(nodes=2), whole_nodes=False))
    assert len(history.tick().submit) == 2
    by_gpu = History(state_of(*works), cluster_of(QuotaConfig(gpus=2), whole_nodes=False))
    assert len(by_gpu.tick().submit) == 2
    assert len(History(state_of(*works), cluster_of(QuotaConfig(gpus=3), whole_nodes=False)).tick().submit) == 3
