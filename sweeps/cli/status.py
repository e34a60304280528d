"""The status of a sweep as values. Pure: state in, values out (`sweeps.cli.status_table` draws them)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from muloco_runner.record import Goodput
from sweeps.cli.goodput_lines import goodput_of
from sweeps.engine.capacity import MAX_GPU_HOURS
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.counters import Counters
from sweeps.engine.decide import AVOID_NODE_SECONDS
from sweeps.engine.lower_bound import makespan_lower_bound
from sweeps.engine.outcome import Progress
from sweeps.engine.run_states import RunState
from sweeps.engine.sweep_state import SlowNode, SweepState, TrackedJob
from sweeps.engine.works import Group, Shape, group_of, shape_of
from sweeps.store.lease import Holder
from sweeps.store.ledger import Damage


@dataclass(frozen=True)
class RunningRun:
    """A run whose attempt is running."""

    run: RunState
    minutes: float
    """Since it started."""
    expected_minutes: float
    """The first estimate, corrected by the runs that have finished."""
    progress: Progress | None = None


@dataclass(frozen=True)
class Status:
    name: str
    cluster_name: str
    counters: Counters
    """Counts of the chosen runs."""
    running: Sequence[RunningRun]
    waiting: Mapping[str, int]
    """Numbers of waiting runs, by reason."""
    submitted: Mapping[str, int]
    """Numbers of runs whose jobs are pending, by the scheduler's reason."""
    gpu_hours_used: float
    """Used by the whole sweep, running jobs included."""
    gpu_hours_left: float
    """Expected for the chosen runs."""
    gpu_hours_cap: float | None
    minutes_left: float | None
    """Lower bound until the sweep is over; None where it is not known, or only some runs were chosen."""
    is_over: bool
    group_labels: tuple[str, ...]
    """What the values of the counters' groups are called."""
    controller: str = ""
    """Process and host of the running controller; empty where none is running."""
    damage: Sequence[Damage] = field(default=())
    waits_for: str = ""
    """Whom the controller waits for before it submits anything; empty where it need not."""
    goodput: Mapping[str, Goodput] = field(default_factory=dict)
    """Where the hours of ended jobs went, by processor; for chosen runs those of their own attempts."""
    slow_nodes: Mapping[str, SlowNode] = field(default_factory=dict)

    def _labels(self, group: Group) -> dict[str, Any]:
        return {label: value for label, value in zip(self.group_labels, group, strict=True) if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return the values of `--json`, without the runs."""
        counters = self.counters
        return {
            "counts": {word: count for word, count in counters.counts.items() if count},
            "waiting": dict(self.waiting),
            "waits_for": self.waits_for,
            "submitted": dict(self.submitted),
            "held": {why: list(names) for why, names in counters.held.items()},
            "resubmitted": counters.resubmitted,
            "gpu_hours_used": self.gpu_hours_used,
            "gpu_hours_left": self.gpu_hours_left,
            "max_gpu_hours": self.gpu_hours_cap,
            "goodput": {name: one.to_dict() | {"rates": one.rates} for name, one in self.goodput.items()},
            "minutes_left": self.minutes_left,
            "finished": [
                {**_NO_LABELS, **self._labels(group), **vars(finished)} for group, finished in counters.finished.items()
            ],
            "slow_nodes": [
                {"node": node, **vars(slow), "avoided_until": slow.at + AVOID_NODE_SECONDS}
                for node, slow in self.slow_nodes.items()
            ],
            "damage": [{"line": one.line, "why": one.why} for one in self.damage],
        }


_NO_LABELS = {"algorithm": "", "num_params": 0}
"""Keys that programs find in each row, whatever the work's labels are."""


def status_of(
    name: str,
    state: SweepState,
    config: ClusterConfig,
    chosen: Sequence[RunState] | None,
    waiting: Callable[[Counters], Mapping[str, int]],
    pending: Mapping[str, str],
    progress: Callable[[RunState], Progress | None],
    now: float,
    holder: Holder | None = None,
    damage: Sequence[Damage] = (),
    waits_for: str = "",
) -> Status:
    """Return the status of the chosen runs; of all where `chosen` is None.

    `waiting` counts runs by why they wait, `pending` has the scheduler's reason of each pending job by tag, `holder` is
    the running controller, `waits_for` says whom it waits for.
    """
    names = None if chosen is None else {run.work.name for run in chosen}
    counters = state.counters if chosen is None else _counters_of(chosen)
    running = []
    submitted: Counter[str] = Counter()
    left = counters.minutes_left
    for run, job in _in_flight(state):
        if names is not None and run.work.name not in names:
            continue
        minutes = 0.0 if job.started_at is None else max(0.0, now - job.started_at) / 60
        if job.started_at is None:
            submitted[pending.get(job.tag, "")] += 1
        else:
            expected = run.work.need.expected_minutes * state.counters.correction(group_of(run.work))
            running.append(RunningRun(run, minutes, expected, progress(run)))
            left[shape_of(run.work)] -= min(minutes, expected)
    return Status(
        name=name,
        cluster_name=config.name,
        counters=counters,
        running=running,
        waiting=waiting(counters),
        submitted=submitted,
        gpu_hours_used=sum(state.spent_gpu_hours.values()) + sum(_gpu_hours_so_far(state, now)),
        gpu_hours_left=sum(nodes * gpus * minutes / 60 for (nodes, gpus, _), minutes in left.items()),
        gpu_hours_cap=state.own_limits.get(MAX_GPU_HOURS),
        minutes_left=_minutes_left(state, config, left, running) if chosen is None else None,
        is_over=state.is_over,
        group_labels=state.runs.works.group_labels,
        controller=f"pid {holder.pid} on {holder.host}" if holder is not None else "",
        damage=damage,
        waits_for=waits_for,
        goodput=state.goodput if chosen is None else goodput_of(chosen),
        slow_nodes=state.slow_nodes,
    )


def _counters_of(runs: Iterable[RunState]) -> Counters:
    counters = Counters()
    for run in runs:
        counters.add(run)
    return counters


def _in_flight(state: SweepState) -> Iterable[tuple[RunState, TrackedJob]]:
    for job in state.jobs.values():
        for attempt in job.request.attempts:
            run = state.runs.get(attempt.work.name)
            if run is not None and run.in_flight:
                yield run, job


def _gpu_hours_so_far(state: SweepState, now: float) -> Iterable[float]:
    for job in state.jobs.values():
        if job.started_at is not None:
            yield job.request.nodes * job.request.gpus_per_node * max(0.0, now - job.started_at) / 3600


def _minutes_left(
    state: SweepState, config: ClusterConfig, left: Mapping[Shape, float], running: Sequence[RunningRun]
) -> float | None:
    if state.is_over:
        return 0.0
    heads = [queue.longest().work for queue in state.waiting.values() if len(queue)]
    longest = [work.need.expected_minutes * state.counters.correction(group_of(work)) for work in heads]
    longest += [max(0.0, one.expected_minutes - one.minutes) for one in running]
    return makespan_lower_bound(left, max(longest, default=0.0), config, state.own_limits)
