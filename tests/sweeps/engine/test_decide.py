"""Histories of sweeps, played through the pure decision: quotas hold, nothing runs twice, nothing starves."""

from histories import NOON, History, cluster_of, decide_at_noon, state_of, work
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.engine.cluster import JobRequest, Limit, Resource
from sweeps.engine.cluster_config import QuotaConfig
from sweeps.engine.decide import decide
from sweeps.engine.policy import Cause
from sweeps.engine.quota import VerdictKind
from sweeps.engine.work import Attempt, Need, Work

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


def test_two_jobs_that_share_a_node_count_as_two_nodes() -> None:
    works = [work(f"r{n}", gpus=1) for n in range(3)]
    history = History(state_of(*works), cluster_of(QuotaConfig(nodes=2), whole_nodes=False))
    assert len(history.tick().submit) == 2
    by_gpu = History(state_of(*works), cluster_of(QuotaConfig(gpus=2), whole_nodes=False))
    assert len(by_gpu.tick().submit) == 2
    assert len(History(state_of(*works), cluster_of(QuotaConfig(gpus=3), whole_nodes=False)).tick().submit) == 3
