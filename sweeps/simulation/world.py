"""Nodes, a queue, time limits and faults as a discrete-event simulation.

Seeded: the same requests at the same times end in the same way. What must never happen (a run at work twice, or again
after it has finished) raises `AssertionError`.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from muloco_runner.record import AttemptTimes
from sweeps.engine.cluster import JobEnd, JobRequest
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.outcome import Ending, Headway, Outcome, Progress
from sweeps.engine.work import Attempt, Work
from sweeps.simulation.faults import FaultModel

_START_SECONDS = 1.0
"""Delay between a node becoming free and a job starting on it."""
_STARTUP_MINUTES = 0.5
"""Start-up time of each attempt."""
_CHECKPOINT_MINUTES = 10.0
_WARNING_MINUTES = 2.0
"""Before the time limit an attempt is asked to checkpoint."""
_REPAIR_MINUTES = 60.0
"""A failed node is down for so long."""
_STEPS_PER_MINUTE = 100
_OTHERS_MINUTES = 360.0
"""Mean length of another user's job on one node."""


@dataclass
class Node:
    name: str
    gpus: int
    cpus: int
    up: bool = True
    is_others: bool = False
    jobs: set[str] = field(default_factory=set)


@dataclass
class Job:
    request: JobRequest
    job_id: str
    after: frozenset[str]
    """Numbers of the jobs that must have ended before it starts."""
    accepted_at: float
    started_at: float | None = None
    ended_at: float | None = None
    nodes: list[Node] = field(default_factory=list)
    end: JobEnd | None = None
    running: set[str] = field(default_factory=set)
    """Names of the attempts that have not ended."""
    stuck: set[str] = field(default_factory=set)
    exit_code: int = 0


class World:
    """Time stands still between calls of `advance`. `now` is in Unix seconds."""

    def __init__(self, config: ClusterConfig, faults: FaultModel, num_nodes: int, now: float) -> None:
        self.faults, self.now = faults, now
        self.random = random.Random(faults.seed)
        self.nodes = {
            a.name: [Node(f"{a.name}{n:03d}", a.gpus_per_node, a.cpus_per_node) for n in range(1, num_nodes + 1)]
            for a in config.allocations
        }
        self.jobs: dict[str, Job] = {}
        """Every job that was ever accepted, by tag."""
        self._live: dict[str, Job] = {}
        """Those that have not ended."""
        self.queue: deque[Job] = deque()
        self.node_seconds = 0.0
        """Held by jobs that have ended."""
        self._events: list[tuple[float, int, str, str, str]] = []
        self._number = 0
        self._finished: set[str] = set()
        self._minutes_done: dict[str, float] = {}
        """Up to the last checkpoint, by the work's name."""
        self._whole_minutes: dict[str, float] = {}
        """What the whole work takes, by its name, of work that has begun."""
        self._most_done: dict[str, float] = {}
        """Minutes up to which the work has ever come when an attempt of it ended, by its name."""
        self._endings: dict[tuple[str, int], tuple[Ending, str]] = {}
        self._reports: dict[tuple[str, int], Progress] = {}
        """The last word of each attempt that has ended."""
        self._silent_since: dict[str, float] = {}
        self._beats_until: dict[str, float] = {}
        """Infinite while an attempt of the work runs."""
        self._jobs_of: dict[str, Job] = {}
        """The newest job of each work, by its name."""
        self._busy: set[str] = set()
        """Names of work in jobs that are accepted and not ended."""
        for name, nodes in self.nodes.items():
            self._plan_failure(name, len(nodes))
            self._plan_others(name)

    @property
    def next_event_at(self) -> float:
        """Unix seconds; infinity where nothing will happen by itself."""
        return min((at for at, _, what, _, _ in self._events[:1]), default=math.inf)

    def advance(self, until: float) -> None:
        """Lets time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _, what, first, second = heapq.heappop(self._events)
            getattr(self, f"_on_{what}")(first, second)
        self.now = until

    def live(self) -> Iterator[Job]:
        """Jobs that wait or run."""
        return iter(self._live.values())

    def gpu_hours(self, allocation: str) -> float:
        """Held so far by all jobs of an allocation."""
        gpu_seconds = 0.0
        for job in self.jobs.values():
            if job.request.allocation == allocation and job.started_at is not None:
                ended_at = self.now if job.ended_at is None else job.ended_at
                gpu_seconds += job.request.nodes * job.request.gpus_per_node * (ended_at - job.started_at)
        return gpu_seconds / 3600

    def is_finished(self, name: str) -> bool:
        return name in self._finished

    def share_done(self, work: Work) -> float:
        """Of the whole work, the running attempt included."""
        if work.name in self._finished:
            return 1.0
        minutes = self._minutes_done.get(work.name, 0.0)
        job = self._jobs_of.get(work.name)
        if job is not None and work.name in job.running and work.name not in job.stuck:
            assert job.started_at is not None
            minutes += max(0.0, (self.now - job.started_at) / 60 - _STARTUP_MINUTES) / self._slowness(job)
        return min(1.0, minutes / self._true_minutes(work))

    # What a user of the cluster does

    def accept(self, request: JobRequest, after: Sequence[str] = ()) -> None:
        """Puts a job into the queue. `after` are numbers of jobs."""
        for attempt in request.attempts:
            name = attempt.work.name
            assert name not in self._busy, f"{name} runs twice at once"
            assert name not in self._finished, f"{name} is finished and runs again"
            trunk = attempt.work.trunk
            assert trunk is None or self.reaches(trunk.run, trunk.share) <= self.now, (
                f"{name} has nothing to go on from"
            )
            self._busy.add(name)
        job = Job(request, str(len(self.jobs) + 1), frozenset(after), self.now)
        self.jobs[request.tag] = self._live[request.tag] = job
        self.queue.append(job)
        self._at(_START_SECONDS / 60, "schedule")

    def cancel(self, tag: str) -> None:
        for attempt in self.jobs[tag].request.attempts:
            self._silent_since.pop(attempt.work.name, None)
        self._at(_START_SECONDS / 60, "cancel", tag)

    def cancel_pending(self, tag: str) -> None:
        """Cancels a job unless it starts first."""
        self._at(_START_SECONDS / 60, "cancel_pending", tag)

    def reaches(self, name: str, share: float) -> float:
        """When the work has done that share of itself, Unix seconds, if it is left alone; infinite where it does not
        run and has not come so far."""
        whole, job = self._whole_minutes.get(name), self._jobs_of.get(name)
        if whole is None or job is None:
            return math.inf
        if self._most_done.get(name, 0.0) >= share * whole:
            return self.now
        if name not in job.running:
            return math.inf
        assert job.started_at is not None
        missing = share * whole - self._minutes_done.get(name, 0.0)
        return job.started_at + 60 * (_STARTUP_MINUTES + max(0.0, missing) * self._slowness(job))

    def outcome(self, attempt: Attempt) -> Outcome:
        """What lies in the folder of the attempt's work."""
        name = attempt.work.name
        ending, message = self._endings.get((name, attempt.number), (None, ""))
        step = int(self._minutes_done.get(name, 0.0) * _STEPS_PER_MINUTE)
        last = self._beats_until.get(name)
        heartbeat_at = None if last is None else min(self.now, last, self._silent_since.get(name, self.now))
        report = self._reports.get((name, attempt.number)) or self._report_so_far(attempt, heartbeat_at)
        return Outcome(name in self._finished, ending, step, message=message, heartbeat_at=heartbeat_at, report=report)

    def _report_so_far(self, attempt: Attempt, heartbeat_at: float | None) -> Progress | None:
        """Of an attempt that runs, as of its heartbeat."""
        job = self._jobs_of.get(attempt.work.name)
        if job is None or attempt not in job.request.attempts or attempt.work.name not in job.running:
            return None
        assert job.started_at is not None
        assert heartbeat_at is not None
        done = (heartbeat_at - job.started_at) / self._slowness(job)
        return Progress(attempt.number, heartbeat_at, headway=Headway(done, heartbeat_at))

    def _slowness(self, job: Job) -> float:
        """How many times longer the job's work takes: its slowest node decides."""
        return max(self.faults.slow_nodes.get(node.name, 1.0) for node in job.nodes)

    # What happens by itself

    def _at(self, minutes: float, what: str, first: str = "", second: str = "") -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + 60 * minutes, self._number, what, first, second))

    def _plan_failure(self, allocation: str, num_nodes: int) -> None:
        rate = self.faults.node_failures_per_day * num_nodes
        if rate:
            self._at(1440 * self.random.expovariate(rate), "node_failure", allocation)

    def _on_node_failure(self, allocation: str, _: str) -> None:
        nodes = self.nodes[allocation]
        node = self.random.choice(nodes)
        node.up = False
        self._at(_REPAIR_MINUTES, "repair", allocation, node.name)
        for tag in list(node.jobs):
            self._end(self.jobs[tag], JobEnd.NODE_FAILURE)
        # A world without jobs would otherwise never end.
        if self.queue or any(other.jobs for other in nodes):
            self._plan_failure(allocation, len(nodes))

    def _on_repair(self, allocation: str, name: str) -> None:
        next(node for node in self.nodes[allocation] if node.name == name).up = True
        self._at(0, "schedule")

    def _plan_others(self, allocation: str) -> None:
        if self.faults.background_load:
            rate = self.faults.background_load * len(self.nodes[allocation]) / _OTHERS_MINUTES
            self._at(self.random.expovariate(rate), "others_come", allocation)

    def _on_others_come(self, allocation: str, _: str) -> None:
        free = [node for node in self.nodes[allocation] if node.up and not node.jobs and not node.is_others]
        if free:
            node = self.random.choice(free)
            node.is_others = True
            self._at(self.random.expovariate(1 / _OTHERS_MINUTES), "others_go", allocation, node.name)
        if self.queue or any(node.jobs for node in self.nodes[allocation]):
            self._plan_others(allocation)

    def _on_others_go(self, allocation: str, name: str) -> None:
        next(node for node in self.nodes[allocation] if node.name == name).is_others = False
        self._at(0, "schedule")

    def _on_schedule(self, _: str, __: str) -> None:
        for job in list(self.queue):
            if self.is_behind(job):
                continue
            nodes = self._place(job.request)
            if nodes is not None:
                self.queue.remove(job)
                self._start(job, nodes)

    def is_behind(self, job: Job) -> bool:
        """Whether a job must wait for others' ends."""
        return any(other.job_id in job.after for other in self._live.values()) if job.after else False

    def _place(self, request: JobRequest) -> list[Node] | None:
        gpus, cpus = request.gpus_per_node, request.cpus_per_node
        running = [job for job in self.live() if job.nodes and job.request.allocation == request.allocation]
        limit = self.faults.node_limit
        if limit is not None and sum(job.request.nodes for job in running) + request.nodes > limit:
            return None
        fitting = [
            node
            for node in self.nodes[request.allocation]
            if node.up
            and not node.is_others
            and node.gpus >= gpus
            and node.cpus >= cpus
            and node.name not in request.excluded_nodes
        ]
        return fitting[: request.nodes] if len(fitting) >= request.nodes else None

    def _start(self, job: Job, nodes: list[Node]) -> None:
        job.started_at, job.nodes = self.now, nodes
        for node in nodes:
            node.gpus -= job.request.gpus_per_node
            node.cpus -= job.request.cpus_per_node
            node.jobs.add(job.request.tag)
        for attempt in job.request.attempts:
            job.running.add(attempt.work.name)
            self._begin(job, attempt)
        self._at(max(0.0, job.request.wall_minutes - _WARNING_MINUTES), "warning", job.request.tag)
        self._at(job.request.wall_minutes, "time_limit", job.request.tag)
        if self.faults.preemptions_per_day:
            self._at(1440 * self.random.expovariate(self.faults.preemptions_per_day), "preemption", job.request.tag)

    def _begin(self, job: Job, attempt: Attempt) -> None:
        """Decides how the attempt would end if it were left alone."""
        name = attempt.work.name
        assert name not in self._finished, f"{name} is finished and runs again"
        self._beats_until[name] = math.inf
        self._jobs_of[name] = job
        whole = self._true_minutes(attempt.work)
        self._whole_minutes[name] = whole
        work_left = whole - self._minutes_done.get(name, 0.0)
        left = _STARTUP_MINUTES + work_left * self._slowness(job)
        is_oom_prone = self.has(name, "hungry", self.faults.out_of_memory)
        if is_oom_prone and not attempt.adjustments:
            self._at(_STARTUP_MINUTES, "attempt_end", job.request.tag, f"{name} 70")
        elif self.has(name, "broken", self.faults.broken):
            self._at(_STARTUP_MINUTES, "attempt_end", job.request.tag, f"{name} 1")
        elif self.random.random() < self.faults.hangs:
            job.stuck.add(name)
            self._silent_since[name] = self.now + 60 * self.random.uniform(0, left)
        elif self.random.random() < self.faults.crashes:
            self._at(self.random.uniform(0, left), "attempt_end", job.request.tag, f"{name} 1")
        else:
            self._at(left, "attempt_end", job.request.tag, f"{name} 0")

    def has(self, name: str, what: str, share: float) -> bool:
        """Whether a run, in every attempt the same, or a job has a property. `what` salts the random draw: another name
        would draw others."""
        return share > 0 and random.Random(f"{self.faults.seed} {what} {name}").random() < share

    def _true_minutes(self, work: Work) -> float:
        log_ratio = random.Random(f"{self.faults.seed} minutes {work.name}").gauss(0, self.faults.spread)
        return work.need.expected_minutes * math.exp(log_ratio)

    def _on_attempt_end(self, tag: str, name_and_code: str) -> None:
        name, _, code = name_and_code.rpartition(" ")
        job = self.jobs[tag]
        if job.ended_at is None and name in job.running:
            self._attempt_ends(job, name, int(code))

    def _attempt_ends(self, job: Job, name: str, code: int) -> None:
        assert job.started_at is not None
        attempt = next(a for a in job.request.attempts if a.work.name == name)
        job.running.discard(name)
        job.exit_code = max(job.exit_code, code)
        if code == 0:
            self._finished.add(name)
        self._save(job, attempt, asked_to=code == 75)
        message = "" if code in (0, 75) else f"exit code {code} of {name}"
        self._endings[name, attempt.number] = (Ending(code, job.nodes[0].name, job.started_at, self.now), message)
        if not job.running:
            self._end(job, JobEnd.EXITED)

    def _save(self, job: Job, attempt: Attempt, asked_to: bool) -> None:
        """What of the attempt's work outlives it."""
        assert job.started_at is not None
        trained = max(0.0, (self.now - job.started_at) / 60 - _STARTUP_MINUTES) / self._slowness(job)
        done = self._minutes_done.get(attempt.work.name, 0.0) + trained
        self._most_done[attempt.work.name] = max(done, self._most_done.get(attempt.work.name, 0.0))
        kept = trained if asked_to else _CHECKPOINT_MINUTES * (trained // _CHECKPOINT_MINUTES)
        self._minutes_done[attempt.work.name] = self._minutes_done.get(attempt.work.name, 0.0) + kept
        self._reports[attempt.work.name, attempt.number] = Progress(
            attempt.number,
            done=trained,
            kept=kept,
            unit="minutes",
            times=AttemptTimes(
                as_of=self.now,
                first_step_at=job.started_at + 60 * _STARTUP_MINUTES if trained else None,
                unsaved_seconds=60 * (trained - kept),
                ended=asked_to,
            ),
        )

    def _on_warning(self, tag: str, _: str) -> None:
        job = self.jobs[tag]
        if job.ended_at is None:
            for name in sorted(job.running - job.stuck):
                self._attempt_ends(job, name, 75)

    def _on_time_limit(self, tag: str, _: str) -> None:
        self._end(self.jobs[tag], JobEnd.TIMEOUT)

    def _on_preemption(self, tag: str, _: str) -> None:
        self._end(self.jobs[tag], JobEnd.PREEMPTED)

    def _on_cancel(self, tag: str, _: str) -> None:
        self._end(self.jobs[tag], JobEnd.CANCELLED)

    def _on_cancel_pending(self, tag: str, _: str) -> None:
        if self.jobs[tag].started_at is None:
            self._end(self.jobs[tag], JobEnd.CANCELLED)

    def _end(self, job: Job, end: JobEnd) -> None:
        if job.ended_at is not None:
            return
        job.end, job.ended_at = end, self.now
        del self._live[job.request.tag]
        if job.started_at is None:
            self.queue.remove(job)
        else:
            self.node_seconds += len(job.nodes) * (self.now - job.started_at)
        for attempt in job.request.attempts:
            self._busy.discard(attempt.work.name)
            if job.started_at is not None:
                self._beats_until[attempt.work.name] = self.now
            if attempt.work.name in job.running:
                self._save(job, attempt, asked_to=False)
        job.running.clear()
        for node in job.nodes:
            node.gpus += job.request.gpus_per_node
            node.cpus += job.request.cpus_per_node
            node.jobs.discard(job.request.tag)
        if self.queue:
            self._at(_START_SECONDS / 60, "schedule")
