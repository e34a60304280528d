"""The status of a sweep as values. Pure: state in, values out (`sweeps.cli.status_table` draws them)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from muloco_runner.record import Goodput
from sweeps.cli.goodput_lines import goodput_of
from sweeps.engine.capacity import MAX_GPU_HOURS
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.counters import Counters
from sweeps.engine.decide import AVOID_NODE_SECONDS
from sweeps.engine.job_needs import measured_minutes_left
from sweeps.engine.lower_bound import makespan_lower_bound
from sweeps.engine.outcome import Progress
from sweeps.engine.run_states import RunState
from sweeps.engine.sweep_state import SlowNode, SweepState, TrackedJob
from sweeps.engine.works import Group, Shape, group_of, shape_of
from sweeps.store.lease import Holder
from sweeps.store.ledger import Damage
from sweeps.training.wandb_unsent import Unsent


class Basis(StrEnum):
    """What a time that is left is from."""

    PROGRESS = "progress"
    """What the run itself has reported: the share done, and the speed of its newest attempt that has one."""
    ESTIMATE = "estimate"
    """What runs like it have taken, or the first guess."""


@dataclass(frozen=True)
class TimeLeft:
    """How long a run has yet to work."""

    minutes: float
    by: Basis
    attempt_minutes: float
    """That its next attempt, or the one at work, takes from start to end."""


@dataclass(frozen=True)
class RunningRun:
    """A run whose attempt is running."""

    run: RunState
    minutes: float
    """Since it started."""
    left: TimeLeft
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
    minutes_left_by: Mapping[Basis, int]
    """How many unfinished runs count in it by what."""
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
    unsent: Sequence[Unsent] = field(default=())
    """Records that Weights & Biases has not got."""

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
            "minutes_left_by": dict(self.minutes_left_by),
            "finished": [
                {**_NO_LABELS, **self._labels(group), **vars(finished)} for group, finished in counters.finished.items()
            ],
            "slow_nodes": [
                {"node": node, **vars(slow), "avoided_until": slow.at + AVOID_NODE_SECONDS}
                for node, slow in self.slow_nodes.items()
            ],
            "wandb": [one.to_dict() for one in self.unsent],
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
    unsent: Sequence[Unsent] = (),
) -> Status:
    """Return the status of the chosen runs; of all where `chosen` is None.

    `waiting` counts runs by why they wait, `pending` has the scheduler's reason of each pending job by tag, `holder` is
    the running controller, `waits_for` says whom it waits for, `unsent` are records that Weights & Biases has not got.
    """
    names = None if chosen is None else {run.work.name for run in chosen}
    counters = state.counters if chosen is None else _counters_of(chosen)
    running = []
    submitted: Counter[str] = Counter()
    left = counters.minutes_left
    begun: dict[str, TimeLeft] = {}
    for run, job in _in_flight(state):
        if names is not None and run.work.name not in names:
            continue
        found = progress(run) if job.started_at is not None else None
        begun[run.work.name] = time_left(run, state, found, now)
        if job.started_at is None:
            submitted[pending.get(job.tag, "")] += 1
        else:
            minutes = max(0.0, now - job.started_at) / 60
            running.append(RunningRun(run, minutes, begun[run.work.name], found))
    begun |= {tried: time_left(state.runs[tried], state, None, now) for tried in counters.tried}
    for run, one in ((state.runs[key], one) for key, one in begun.items()):
        left[shape_of(run.work)] -= _estimate(run, state) - one.minutes
    by = Counter(one.by for one in begun.values())
    by[Basis.ESTIMATE] += sum(counters.fresh.values())
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
        minutes_left=_minutes_left(state, config, left, running, now) if chosen is None else None,
        minutes_left_by={basis: by[basis] for basis in Basis},
        is_over=state.is_over,
        group_labels=state.runs.works.group_labels,
        controller=f"pid {holder.pid} on {holder.host}" if holder is not None else "",
        damage=damage,
        waits_for=waits_for,
        goodput=state.goodput if chosen is None else goodput_of(chosen),
        slow_nodes=state.slow_nodes,
        unsent=unsent,
    )


def time_left(run: RunState, state: SweepState, progress: Progress | None, now: float) -> TimeLeft:
    """Return how long a run that is neither done nor held has yet to work; `progress` is its running attempt's."""
    started_at = run.attempts[-1].started_at if run.in_flight else None
    so_far = 0.0 if started_at is None else max(0.0, now - started_at) / 60
    own = progress.minutes_to_end(started_at, now) if progress is not None and started_at is not None else None
    if own is not None:
        return TimeLeft(own, Basis.PROGRESS, so_far + own)
    measured = measured_minutes_left(run)
    whole = _estimate(run, state) if measured is None else measured
    return TimeLeft(max(0.0, whole - so_far), Basis.ESTIMATE if measured is None else Basis.PROGRESS, whole)


def _estimate(run: RunState, state: SweepState) -> float:
    """Minutes of the whole run: the first estimate, corrected by the runs that have finished."""
    return run.work.need.expected_minutes * state.counters.correction(group_of(run.work))


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
    state: SweepState, config: ClusterConfig, left: Mapping[Shape, float], running: Sequence[RunningRun], now: float
) -> float | None:
    if state.is_over:
        return 0.0
    heads = [queue.longest() for queue in state.waiting.values() if len(queue)]
    longest = [time_left(run, state, None, now).minutes for run in heads]
    longest += [one.left.minutes for one in running]
    return makespan_lower_bound(left, max(longest, default=0.0), config, state.own_limits)
