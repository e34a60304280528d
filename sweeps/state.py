"""The state of a sweep: what replaying its ledger gives. Pure: events in, state out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sweeps.clusters.interface import JobRequest
from sweeps.ledger import Event
from sweeps.policy import Cause, PastAttempt, after
from sweeps.work import Work


@dataclass
class AttemptState:
    number: int
    tag: str
    allocation: str
    gpus: int
    intended_at: float
    started_at: float | None = None
    ended_at: float | None = None
    nodes: tuple[str, ...] = ()
    cause: Cause | None = None
    """None while it is in flight."""
    detail: str = ""
    """One line on how it ended."""
    advanced: bool = False
    """Whether it left a newer checkpoint than there was before."""
    checkpoint_step: int = 0

    @property
    def gpu_hours(self) -> float:
        """Really used, of an attempt that has ended; counted at least per job, so shared GPUs count once each."""
        if self.started_at is None or self.ended_at is None:
            return 0.0
        return self.gpus * max(0.0, self.ended_at - self.started_at) / 3600


@dataclass
class RunState:
    """One piece of work and what has been tried."""

    work: Work
    attempts: list[AttemptState] = field(default_factory=list)
    released_after: int = 0
    """Attempts up to this number no longer count against it: someone has said `retry`."""
    done: bool = False
    held: str | None = None
    """Why nothing more is tried."""
    not_before: float = 0.0
    """Unix seconds: the backoff after its last attempt."""

    @property
    def in_flight(self) -> bool:
        return bool(self.attempts) and self.attempts[-1].cause is None

    @property
    def is_waiting(self) -> bool:
        return not self.done and self.held is None and not self.in_flight

    @property
    def memory_halvings(self) -> int:
        return sum(attempt.cause is Cause.OUT_OF_MEMORY for attempt in self.attempts)


@dataclass
class JobState:
    """A job that was, or may have been, submitted and has not ended."""

    tag: str
    request: JobRequest
    intended_at: float
    job_id: str | None = None
    """None between the intent and the cluster's answer."""
    started_at: float | None = None
    cancelling: Cause | None = None
    """Why we have asked for its end."""


@dataclass
class NodeStrikes:
    """When a node failed us, newest last; Unix seconds."""

    times: list[float] = field(default_factory=list)


@dataclass
class SweepState:
    runs: dict[str, RunState]
    prefix: str = ""
    """Of the tags of its jobs: tells this sweep's from all others' on the cluster."""
    jobs: dict[str, JobState] = field(default_factory=dict)
    """In flight, by tag."""
    num_jobs: int = 0
    """Ever intended; the next tag's number."""
    strikes: dict[str, NodeStrikes] = field(default_factory=dict)
    paused: bool = False
    own_limits: dict[str, float] = field(default_factory=dict)
    """Set while running, by resource name; they take the place of the cluster file's quota."""
    defer_until: float = 0.0
    """The cluster has refused a submission for now."""
    commands: set[str] = field(default_factory=set)
    """People's commands that have been carried out."""

    @property
    def is_over(self) -> bool:
        """Nothing in flight, and nothing that could be tried."""
        return not self.jobs and all(run.done or run.held is not None for run in self.runs.values())

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
        self.num_jobs += 1
        self.jobs[request.tag] = JobState(request.tag, request, event["time"])
        for attempt in request.attempts:
            run = self.runs.get(attempt.work.name)
            if run is not None:
                gpus = attempt.work.need.gpus
                run.attempts.append(AttemptState(attempt.number, request.tag, request.allocation, gpus, event["time"]))

    def _submitted(self, event: Event) -> None:
        if event["tag"] in self.jobs:
            self.jobs[event["tag"]].job_id = event["job_id"]

    def _attempts_of(self, tag: str) -> Iterable[tuple[RunState, AttemptState]]:
        for attempt in self.jobs[tag].request.attempts if tag in self.jobs else ():
            run = self.runs.get(attempt.work.name)
            if run is not None and run.attempts and run.attempts[-1].tag == tag:
                yield run, run.attempts[-1]

    def _refused(self, event: Event) -> None:
        """Not accepted: as if never tried, unless the request itself was wrong."""
        for run, _attempt in list(self._attempts_of(event["tag"])):
            run.attempts.pop()
            if event.get("hold"):
                run.held = event["hold"]
        self.jobs.pop(event["tag"], None)

    def _started(self, event: Event) -> None:
        if event["tag"] in self.jobs:
            self.jobs[event["tag"]].started_at = event["at"]
        for _run, attempt in self._attempts_of(event["tag"]):
            attempt.started_at, attempt.nodes = event["at"], tuple(event["nodes"])

    def _cancelling(self, event: Event) -> None:
        if event["tag"] in self.jobs:
            self.jobs[event["tag"]].cancelling = Cause(event["cause"])

    def _ended(self, event: Event) -> None:
        """The whole job has ended; `endings` says how each of its attempts did."""
        for run, attempt in list(self._attempts_of(event["tag"])):
            ending = event["endings"].get(run.work.name)
            if ending is None:
                continue
            attempt.cause, attempt.detail = Cause(ending["cause"]), ending["detail"]
            before = max((earlier.checkpoint_step for earlier in run.attempts[:-1]), default=0)
            attempt.checkpoint_step = ending["checkpoint_step"]
            attempt.advanced = attempt.checkpoint_step > before
            attempt.ended_at = ending["at"]
            attempt.started_at = attempt.started_at or ending["started_at"]
            verdict = after(past_attempts(run))
            run.done = verdict.done
            run.held = verdict.hold
            run.not_before = event["time"] + verdict.wait_seconds
        for node in event["struck_nodes"]:
            self.strikes.setdefault(node, NodeStrikes()).times.append(event["time"])
        self.jobs.pop(event["tag"], None)

    def _held(self, event: Event) -> None:
        for run in self._named(event["runs"]):
            run.held = event["why"]

    def _released(self, event: Event) -> None:
        for run in self._named(event["runs"]):
            run.held, run.not_before = None, 0.0
            run.released_after = run.attempts[-1].number if run.attempts else 0

    def _named(self, names: Iterable[str]) -> Iterable[RunState]:
        """Those of the runs that are still part of the sweep and not done."""
        return (self.runs[name] for name in names if name in self.runs and not self.runs[name].done)

    def _found_finished(self, event: Event) -> None:
        for run in self._named(event["runs"]):
            run.done = True

    def _paused(self, event: Event) -> None:
        self.paused = event["paused"]

    def _own_limits(self, event: Event) -> None:
        self.own_limits = {**self.own_limits, **event["limits"]}

    def _deferred(self, event: Event) -> None:
        self.defer_until = event["until"]


_HANDLERS: dict[str, Callable[[SweepState, Event], None]] = {
    "submitted": SweepState._submitted,
    "refused": SweepState._refused,
    "started": SweepState._started,
    "cancelling": SweepState._cancelling,
    "ended": SweepState._ended,
    "found_finished": SweepState._found_finished,
    "held": SweepState._held,
    "released": SweepState._released,
    "paused": SweepState._paused,
    "own_limits": SweepState._own_limits,
    "deferred": SweepState._deferred,
}


def past_attempts(run: RunState) -> Sequence[PastAttempt]:
    """Those that count, oldest first."""
    return [
        PastAttempt(attempt.cause, attempt.advanced)
        for attempt in run.attempts
        if attempt.cause is not None and attempt.number > run.released_after
    ]
