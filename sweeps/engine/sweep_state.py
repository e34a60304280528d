"""The state of a sweep: what replaying its ledger gives. Pure: events in, state out.

Sums and queues are kept up to date with each event, so that a tick of a sweep of a hundred thousand runs looks at the
few that changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from muloco_runner.record import Goodput, Kind
from sweeps.engine.cluster import JobIdentity, JobRequest
from sweeps.engine.counters import Counters
from sweeps.engine.policy import RULES, Cause, PastAttempt, after
from sweeps.engine.run_states import AttemptState, Queue, Runs, RunState, queues
from sweeps.engine.tuning.growth import Added
from sweeps.engine.tuning.study import Coordinates
from sweeps.engine.work import ITS_TRUNK, Work
from sweeps.engine.works import Shape, shape_of

Event = dict[str, Any]
"""A line of the ledger: `event` names it, `time` is in Unix seconds; other keys are its own (`SweepState.apply`)."""


@dataclass
class TrackedJob:
    """A job that was, or may have been, submitted and has not ended."""

    tag: str
    request: JobRequest
    intended_at: float
    job_id: str | None = None
    """None between the intent and the cluster's answer."""
    started_at: float | None = None
    cancelling: dict[str, Cause] = field(default_factory=dict)
    """Why it is being cancelled, by the name of the run that this is about; empty where it is not. Its other runs end
    with it through no doing of theirs."""
    cancel_pending: bool = False
    """Whether it is to be cancelled unless it starts first."""
    why: dict[str, str] = field(default_factory=dict)
    """Details of `cancelling`, by the run's name, where there are any."""
    hold: str = ""
    """Why its runs are held once it is cancelled; empty where they wait again."""
    uid: int | None = None
    submitted_at: float | None = None
    """As in `JobIdentity`."""
    queued_at: float | None = None
    """Since when nothing but the cluster's queue keeps it from starting, Unix seconds; None while a job before it in
    its chain is in flight."""

    @property
    def is_behind(self) -> bool:
        """Whether it waits for the end of a job whose nodes it takes."""
        return self.started_at is None and self.queued_at is None

    @property
    def is_ending(self) -> bool:
        """Whether it is being cancelled, at least unless it starts first."""
        return self.cancel_pending or bool(self.cancelling)

    def queue_minutes(self, now: float) -> float:
        """How long it waits, or waited, in the cluster's queue."""
        until = now if self.started_at is None else self.started_at
        return 0.0 if self.queued_at is None else max(0.0, until - self.queued_at) / 60

    @property
    def identity(self) -> JobIdentity:
        return JobIdentity(self.tag, self.intended_at, self.job_id, self.uid, self.submitted_at)


def behind_in(runs: Runs) -> dict[str, set[str]]:
    """Runs that wait for another one's checkpoint where nothing has happened yet. A trunk that is not among them, as
    where finished runs are left out, has left it."""
    found: dict[str, set[str]] = {}
    for name, trunk in runs.works.trunks.items():
        if trunk in runs:
            found.setdefault(trunk, set()).add(name)
    return found


def number_of(tag: str) -> int:
    """The number at a tag's end; 0 where there is none."""
    number = tag.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


@dataclass
class NodeFailures:
    """Times at which a node failed a run, newest last; Unix seconds."""

    times: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class SlowNode:
    """The newest run that was much slower on a node than its like elsewhere."""

    run: str
    factor: float
    """So many times slower."""
    at: float
    """Unix seconds at which that was seen."""


@dataclass
class SweepState:
    runs: Runs
    prefix: str = ""
    """Start of its jobs' tags, which tells them from all other jobs on the cluster."""
    jobs: dict[str, TrackedJob] = field(default_factory=dict)
    """Jobs in flight, by tag."""
    num_jobs: int = 0
    """Number of jobs ever intended; the newest tag's number."""
    node_failures: dict[str, NodeFailures] = field(default_factory=dict)
    slow_nodes: dict[str, SlowNode] = field(default_factory=dict)
    """Avoided as if they had failed a run then."""
    paused: bool = False
    own_limits: dict[str, float] = field(default_factory=dict)
    """Set while running, by resource name; they take the place of the cluster file's quota."""
    defer_until: dict[str, float] = field(default_factory=dict)
    """Unix seconds until which an allocation is left alone after a refusal, by allocation."""
    left_after: dict[str, float] = field(default_factory=dict)
    """Minutes that a job had waited in an allocation when jobs were last moved away from it, by allocation; forgotten
    once one starts there."""
    commands: set[str] = field(default_factory=set)
    """People's commands that have been carried out."""
    counters: Counters = field(default_factory=Counters)
    waiting: dict[Shape, Queue] = field(default_factory=dict)
    spent_gpu_hours: dict[str, float] = field(default_factory=dict)
    """GPU-hours of attempts that have ended, by allocation."""
    goodput: dict[str, Goodput] = field(default_factory=dict)
    """Hours of jobs that have ended, by kind: of GPUs, and of CPUs in jobs without any."""
    crashes: dict[tuple[str, object], set[str]] = field(default_factory=dict)
    """Runs whose last attempt crashed, by message and `failure_group`."""
    failed: set[str] = field(default_factory=set)
    """Runs that are held for how they ended (`Rule.is_failure`), since someone last said `retry`."""
    unscored: set[str] = field(default_factory=set)
    """Runs that are done and have no entry in `losses`."""
    losses: dict[str, float | None] = field(default_factory=dict)
    """Final losses of runs of a sweep that goes on by its results, by name; None for those that diverged."""
    added: dict[str, Added] = field(default_factory=dict)
    """Runs that were added to those of the sweep's file, by name, in the order in which they were."""
    rungs: dict[str, dict[str, float]] = field(default_factory=dict)
    """Training losses by share of the budget, of runs of a sweep that stops some early, by name."""
    num_rungs: int = 0
    """Events that have changed `rungs`."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Why runs were stopped early, by name, in the order in which they were; they stay here once they go on after
    all."""
    behind: dict[str, set[str]] = field(default_factory=dict)
    """Names of the runs that cannot start yet, by the run whose checkpoint they wait for (`Work.trunk`)."""
    blocked: dict[str, str] = field(default_factory=dict)
    """Why no run can be added to a group of the study, by its id; each controller tries again."""

    @classmethod
    def of(cls, works: Sequence[Work], prefix: str = "") -> SweepState:
        """The state before anything has been tried."""
        state = cls(Runs(works), prefix)
        state.counters.add_fresh(state.runs.works)
        state.behind = behind_in(state.runs)
        names = state.runs.works.names
        state.waiting = queues(state.runs, (n for n in range(len(works)) if not state.is_behind(names[n])))
        return state

    @property
    def counts(self) -> Counter[str]:
        """Runs by status."""
        return self.counters.counts

    def is_behind(self, name: str) -> bool:
        """Whether the run waits for another one's checkpoint."""
        trunk = self.runs.works.trunks.get(name)
        return trunk is not None and name in self.behind.get(trunk, ())

    @property
    def is_over(self) -> bool:
        """Nothing in flight, and nothing that could be tried."""
        over = self.num_with_result + self.counts["held"]
        return not self.jobs and over == len(self.runs)

    @property
    def num_with_result(self) -> int:
        """Runs that are done, or were stopped early, which is a result too."""
        return self.counts["done"] + self.counts["stopped"]

    def _enter(self, run: RunState) -> None:
        """Adds the run to sums and queues; `_leave` comes before each change of it, this after."""
        self.counters.add(run)
        if run.is_waiting and not self.is_behind(run.work.name):
            self.waiting.setdefault(shape_of(run.work), Queue(self.runs)).add(run)
        key = _crash_key(run)
        if key is not None:
            self.crashes.setdefault(key, set()).add(run.work.name)

    def _leave(self, run: RunState) -> None:
        self.runs.changes(run)
        self.counters.add(run, -1)
        if run.is_waiting and not self.is_behind(run.work.name):
            self.waiting[shape_of(run.work)].remove(run)
        key = _crash_key(run)
        if key is not None:
            self.crashes[key].discard(run.work.name)

    def add(self, work: Work) -> None:
        """One more run, at the sweep's end."""
        self._enter(self.runs.add(work))

    def apply(self, event: Event, request: JobRequest | None = None) -> None:
        """Takes one event in. `intended` comes with its request, which is kept in a file of its own."""
        if event["event"] == "intended":
            assert request is not None
            self._intended(event, request)
        else:
            _HANDLERS[event["event"]](self, event)
        if "command" in event:
            self.commands.add(event["command"])

    def _intended(self, event: Event, request: JobRequest) -> None:
        # A damaged ledger may lack earlier ones: no tag is given twice.
        self.num_jobs = max(self.num_jobs + 1, number_of(request.tag))
        queued_at = None if any(tag in self.jobs for tag in request.after) else event["time"]
        self.jobs[request.tag] = TrackedJob(request.tag, request, event["time"], queued_at=queued_at)
        for attempt in request.attempts:
            run = self.runs.get(attempt.work.name)
            if run is not None:
                self._leave(run)
                gpus = attempt.work.need.gpus
                run.attempts.append(AttemptState(attempt.number, request.tag, request.allocation, gpus, event["time"]))
                self._enter(run)

    def _submitted(self, event: Event) -> None:
        if event["tag"] in self.jobs:
            job = self.jobs[event["tag"]]
            job.job_id = event["job_id"]
            # Not known before the first look at the job, and not recorded by earlier versions.
            job.uid, job.submitted_at = event.get("uid"), event.get("submitted_at")

    def _attempts_of(self, tag: str) -> Iterable[tuple[RunState, AttemptState]]:
        for attempt in self.jobs[tag].request.attempts if tag in self.jobs else ():
            run = self.runs.get(attempt.work.name)
            if run is not None and run.attempts and run.attempts[-1].tag == tag:
                yield run, run.attempts[-1]

    def jobs_behind(self) -> list[TrackedJob]:
        """Jobs that wait for the end of others, and are to start then."""
        return [job for job in self.jobs.values() if job.is_behind and not job.is_ending]

    def runs_behind(self) -> list[RunState]:
        """Their runs that are not held."""
        return [run for job in self.jobs_behind() for run, _ in self._attempts_of(job.tag) if run.held is None]

    def not_begun(self) -> list[RunState]:
        """Runs that wait, or are queued behind others."""
        return [run for queue in self.waiting.values() for run in queue] + self.runs_behind()

    def _refused(self, event: Event) -> None:
        """Not accepted: as if never tried, unless the request itself was wrong."""
        for run, _attempt in list(self._attempts_of(event["tag"])):
            self._leave(run)
            run.attempts.pop()
            if event.get("hold"):
                run.held = event["hold"]
            self._enter(run)
        self._forget_job(event)

    def _started(self, event: Event) -> None:
        if event["tag"] in self.jobs:
            self.jobs[event["tag"]].started_at = event["at"]
            self.left_after.pop(self.jobs[event["tag"]].request.allocation, None)
        for run, attempt in self._attempts_of(event["tag"]):
            self._leave(run)
            attempt.started_at, attempt.nodes = event["at"], tuple(event["nodes"])
            self._enter(run)

    def _withdrawing(self, event: Event) -> None:
        if event["tag"] in self.jobs:
            self.jobs[event["tag"]].cancel_pending = True
            self.jobs[event["tag"]].hold = event.get("hold", "")
            if "to" in event:
                self.left_after[self.jobs[event["tag"]].request.allocation] = event["waited_minutes"]

    def _cancelling(self, event: Event) -> None:
        if event["tag"] in self.jobs:
            job = self.jobs[event["tag"]]
            everyone = [attempt.work.name for attempt in job.request.attempts]
            job.cancelling |= dict.fromkeys(event.get("runs", everyone), Cause(event["cause"]))
            job.why |= event.get("why", {})

    def _ended(self, event: Event) -> None:
        """The whole job has ended; `endings` says how each of its attempts did."""
        self._charge(event)
        for run, attempt in list(self._attempts_of(event["tag"])):
            ending = event["endings"].get(run.work.name)
            if ending is None:
                continue
            self._leave(run)
            attempt.cause, attempt.detail = Cause(ending["cause"]), ending["detail"]
            attempt.checkpoint_step = ending["checkpoint_step"]
            attempt.advanced = run.advances(attempt.checkpoint_step)
            attempt.minutes_left = ending.get("minutes_left")
            attempt.ended_at = ending["at"]
            attempt.hours = ending.get("hours", {})
            if attempt.started_at is None:
                attempt.started_at = ending["started_at"]
            attempts = past_attempts(run)
            attempts[-1] = replace(attempts[-1], can_change=self.jobs[event["tag"]].request.memory_can_grow)
            step = after(attempts, event.get("retries"))
            run.done = step.done
            if run.done and run.work.name not in self.losses:
                self.unscored.add(run.work.name)
            run.held = step.hold
            run.not_before = event["time"] + step.wait_seconds
            if attempt.cause is Cause.HALVED:
                self.stopped[run.work.name] = attempt.detail
            if step.hold is not None and RULES[attempts[-1].cause].is_failure:
                self.failed.add(run.work.name)
            self._enter(run)
        if event["tag"] in self.jobs:
            allocation = self.jobs[event["tag"]].request.allocation
            self.spent_gpu_hours[allocation] = self.spent_gpu_hours.get(allocation, 0.0) + event["gpu_hours"]
        for node in event["struck_nodes"]:
            self.node_failures.setdefault(node, NodeFailures()).times.append(event["time"])
        self._forget_job(event)

    def _forget_job(self, event: Event) -> None:
        """It has ended, or was never there: what was queued behind it now waits for the cluster alone."""
        self.jobs.pop(event["tag"], None)
        for job in self.jobs.values():
            if job.queued_at is None and not any(tag in self.jobs for tag in job.request.after):
                job.queued_at = event["time"]

    def _charge(self, event: Event) -> None:
        """Adds the job's hours by kind."""
        charge = event.get("charge")
        if charge is None:
            # Recorded by an earlier version: of CPUs nothing was charged.
            if event["gpu_hours"]:
                self.goodput.setdefault("GPU", Goodput()).add({Kind.WORK: event["gpu_hours"]})
            return
        goodput = self.goodput.setdefault(charge["processor"], Goodput())
        goodput.add(charge["unused"])
        for ending in event["endings"].values():
            goodput.add(ending["hours"])
            for unit, more in ending["progress"].items():
                goodput.progress[unit] = goodput.progress.get(unit, 0.0) + more
        goodput.progress_hours += charge["hours"]

    def _slow_node(self, event: Event) -> None:
        node = event["node"]
        self.slow_nodes[node] = SlowNode(event["run"], event["factor"], event["time"])
        self.node_failures.setdefault(node, NodeFailures()).times.append(event["time"])

    def _held(self, event: Event) -> None:
        for run in self._named(event["runs"]):
            self._leave(run)
            run.held = event["why"]
            self._enter(run)

    def _released(self, event: Event) -> None:
        self.failed.clear()
        for run in self._named(dict.fromkeys([*event["runs"], *self._held_by_trunks(event["runs"])])):
            self._leave(run)
            run.held, run.not_before = None, 0.0
            # An attempt that is in flight counts: it is what comes of the release.
            ended = [attempt.number for attempt in run.attempts if attempt.cause is not None]
            run.released_after = max(ended, default=0)
            self._enter(run)

    def _held_by_trunks(self, names: Iterable[str]) -> Iterator[str]:
        """The branches of those runs that are held for what became of them."""
        for trunk in names:
            for name in sorted(self.behind.get(trunk, ())):
                if (self.runs[name].held or "").startswith(ITS_TRUNK):
                    yield name

    def _ready(self, event: Event) -> None:
        """Branches have what they go on from."""
        for run in self._named(event["runs"]):
            if self.is_behind(run.work.name):
                self._leave(run)
                assert run.work.trunk is not None
                self.behind[run.work.trunk.run].discard(run.work.name)
                self._enter(run)

    def _named(self, names: Iterable[str]) -> Iterator[RunState]:
        """Those of the runs that are still part of the sweep and not done."""
        return (self.runs[name] for name in names if name in self.runs and not self.runs[name].done)

    def _found_finished(self, event: Event) -> None:
        for run in self._named(event["runs"]):
            self._leave(run)
            run.done = True
            if run.work.trunk is not None:
                self.behind.get(run.work.trunk.run, set()).discard(run.work.name)
            self.failed.discard(run.work.name)
            if run.work.name not in self.losses:
                self.unscored.add(run.work.name)
            self._enter(run)

    def _results(self, event: Event) -> None:
        self.losses |= event["losses"]
        self.unscored -= event["losses"].keys()

    def _rungs(self, event: Event) -> None:
        self.num_rungs += 1
        for name, losses in event["losses"].items():
            self.rungs[name] = {**self.rungs.get(name, {}), **losses}

    def _added(self, event: Event) -> None:
        for values in event["runs"]:
            work = Work.from_dict(values["work"])
            # One that stood elsewhere before is new again, and so the last.
            self.added.pop(work.name, None)
            self.added[work.name] = Added(Coordinates.of(values), values["why"])
            # A file that was changed since may have it too.
            if work.name not in self.runs:
                self.add(work)

    def _blocked(self, event: Event) -> None:
        self.blocked[event["group"]] = event["why"]

    def _unblocked(self, event: Event) -> None:
        self.blocked.clear()

    def _paused(self, event: Event) -> None:
        self.paused = event["paused"]

    def _own_limits(self, event: Event) -> None:
        self.own_limits = {**self.own_limits, **event["limits"]}

    def _deferred(self, event: Event) -> None:
        self.defer_until[event["allocation"]] = event["until"]


_HANDLERS: dict[str, Callable[[SweepState, Event], None]] = {
    "submitted": SweepState._submitted,
    "refused": SweepState._refused,
    "started": SweepState._started,
    "cancelling": SweepState._cancelling,
    "withdrawing": SweepState._withdrawing,
    "ended": SweepState._ended,
    "slow_node": SweepState._slow_node,
    "found_finished": SweepState._found_finished,
    "ready": SweepState._ready,
    "held": SweepState._held,
    "released": SweepState._released,
    "results": SweepState._results,
    "rungs": SweepState._rungs,
    "added": SweepState._added,
    "blocked": SweepState._blocked,
    "unblocked": SweepState._unblocked,
    "paused": SweepState._paused,
    "own_limits": SweepState._own_limits,
    "deferred": SweepState._deferred,
}


def _crash_key(run: RunState) -> tuple[str, object] | None:
    """What identical failures share; None for a run whose last attempt did not crash, or was released since."""
    if not run.attempts or run.done:
        return None
    last = run.attempts[-1]
    is_alone = last.cause is None or not RULES[last.cause].holds_group
    if is_alone or last.number <= run.released_after or not last.detail:
        return None
    return last.detail, failure_group(run.work)


def failure_group(work: Work) -> object:
    """What runs have in common that are held together."""
    return work.labels.get(work.adapter.failure_label)


def past_attempts(run: RunState) -> list[PastAttempt]:
    """Those that count, oldest first."""
    return [
        PastAttempt(attempt.cause, attempt.advanced)
        for attempt in run.attempts
        if attempt.cause is not None and attempt.number > run.released_after
    ]
