"""The controller of one sweep: observe -> decide -> act, until nothing is left to do.

It may be killed at any instruction. An intent is on disk before a job is submitted, and the cluster can find a job by
its tag; so the next controller adopts what is there, whether or not the answer was ever written down.
"""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError
from sweeps.engine.cluster import (
    Cluster,
    JobEnd,
    JobIdentity,
    JobObservation,
    JobRequest,
    JobState,
    Observation,
    RefusalKind,
    Refused,
)
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.decide import AVOID_NODE_SECONDS, Plan, decide
from sweeps.engine.durations import Estimates
from sweeps.engine.policy import (
    IDENTICAL_FAILURES,
    RULES,
    Cause,
    changed_retries,
    doubled,
)
from sweeps.engine.quota import VerdictKind, all_limits
from sweeps.engine.successors import Ahead, unwanted_successors
from sweeps.engine.sweep_state import SweepState, TrackedJob, failure_group
from sweeps.engine.tuning.early_stopping import EarlyStopping
from sweeps.engine.tuning.growth import Growth
from sweeps.engine.work import Attempt
from sweeps.job_end import AttemptEnd, cause_and_words, ended_event
from sweeps.node.attempt_files import is_finished
from sweeps.node.code_snapshot import keep_source
from sweeps.node.disk_space import full_disk_words, is_disk_full, may_mean_disk_full, says_disk_full, words_for
from sweeps.node.reports import likeness, measured_minutes
from sweeps.node_speeds import NodeSpeeds
from sweeps.signs_of_jobs import SignsOfJobs
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import Lease, LeaseLost
from sweeps.store.ledger import Damage, Ledger, Position
from sweeps.store.submission import Submission
from sweeps.trials import Trials
from sweeps.tuning_file import TuningFile

COMMANDS = ("paused", "own_limits", "held", "released", "cancel")
"""What people may ask for; the first four are events of the ledger."""
CANCELLED = "cancelled by hand"
"""Why a run is held that somebody has cancelled before it began."""
_LONGEST_DEFER_SECONDS = 300.0
"""After a refused submission an allocation is left alone for a tick, then two, four, up to this."""
_REPEAT_CANCEL_SECONDS = 60.0
"""A job that runs on is cancelled again after this, or after a tick where that is longer."""
SNAPSHOT_LINES = 2000
"""Lines of the ledger that may have to be replayed after a snapshot, in some tenths of a second."""
_SUBMISSION_PATIENCE_SECONDS = 10.0
"""A tick waits so long for other sweeps to submit, or its own length where that is shorter; then it goes without."""
_RENEW_SECONDS = 30.0
"""Longest time between two renewals of the leases."""
_TICKS_AHEAD = 2
"""Work that is queued behind what runs: the next look may be late, and the one after it counts on that."""
_TICKS_WANTING = 3
"""A sweep that waits for nodes is believed to be there for so many of its ticks."""


@dataclass(frozen=True)
class Tick:
    """What a tick has seen, for whoever shows it."""

    state: SweepState
    plan: Plan
    complete: bool
    """False while the scheduler, or its accounting, does not answer."""
    queue_read: bool
    """False while the scheduler does not answer: nothing is submitted then."""
    waits_for: str = ""
    """Who keeps the sweep from submitting now; empty where nobody does."""

    @property
    def never(self) -> list[str]:
        """Why waiting runs can never run, one sentence for each limit that says so."""
        waiting = [verdict for shape, verdict in self.plan.verdicts.items() if self.state.waiting.get(shape)]
        return list(dict.fromkeys(verdict.why for verdict in waiting if verdict.kind is VerdictKind.NEVER))


class Controller:
    """Holds the sweep's lease from construction on; `LeaseHeld` where another controller is alive."""

    def __init__(
        self,
        folder: SweepFolder,
        definition: Definition,
        make_cluster: Callable[[ClusterConfig, Path], Cluster],
        clock: Callable[[], float] | None = None,
        trials: Trials | None = None,
    ) -> None:
        """`clock` gives Unix seconds; without one it is the file system's, the same for controllers on all hosts.

        `trials` are other than the runs' own files in simulations.
        """
        self.folder, self.definition = folder, definition
        self.config = definition.read_cluster()
        self.lease = Lease(folder.lease_dir)
        self._file_clock_ahead = self.lease.renew() - time.time()
        """Seconds that the file system's clock shows more than this host's."""
        self.clock = clock or self._file_clock
        self.ledger = Ledger(folder.ledger_file, self.lease, self.clock)
        replay = folder.read_state(definition)
        self.state: SweepState = replay.state
        self.damage: list[Damage] = replay.damage
        self.ledger.end = replay.end
        self._refuse_others_jobs()
        self._snapshots = folder.snapshots(self.lease.token)
        self._snapshot_at = replay.end.lines - replay.num_events
        """Lines of the ledger that the newest snapshot stands for."""
        self.cluster = make_cluster(self.config, folder.cluster_dir)
        self._has_begun = False
        self.submission = Submission(self.cluster.submission_scopes, f"{folder.name} in {folder.root.resolve()}")
        self.observation = Observation({}, complete=False, queue_read=False)
        """The last look at the cluster."""
        self.code = ""
        """The copy of the source that jobs run, once there is one."""
        self.estimates = Estimates()
        self.speeds = NodeSpeeds(likeness)
        self._tick_took = 0.0
        """Seconds of the last tick, which the next look comes later by."""
        self.times_on_nodes = Estimates()
        """How long attempts hold their nodes, whatever their work reports of itself."""
        self.signs = SignsOfJobs(self.cluster, self.config)
        self.trials = trials or Trials()
        self.growth = Growth(definition.study) if definition.study is not None else None
        self.tuning_file = TuningFile(folder, definition.cluster_name, self.growth)
        self.early_stopping = (
            EarlyStopping(definition.study, definition.study.halve, self.trials.losses_at, is_finished)
            if definition.study is not None and definition.study.halve is not None
            else None
        )
        self._cancel_sent_at: dict[str, float] = {}
        self._charged_in_file: dict[str, float] | None = None
        """What the newest `goodput.json` of this controller says; None before it has written one."""
        self._refusals: Counter[str] = Counter()
        """Refused submissions in a row, by allocation."""
        self._refused_successors: Counter[str] = Counter()
        self._no_successors_until: dict[str, float] = {}
        """The same of successors alone, and until when an allocation takes none; Unix seconds."""

    def _refuse_others_jobs(self) -> None:
        """A scheduler shows and ends a job for its owner alone: to anybody else it would look lost."""
        owner = self.folder.others_jobs(self.state.jobs)
        if owner is not None:
            self.lease.release()
            raise ConfigError(
                f"sweep {self.folder.name} has jobs of {owner} in flight, which only {owner} can watch and cancel: ask "
                f"{owner} to launch it; while that controller runs, it carries out what others with access ask for"
            )

    def run(self, on_tick: Callable[[Tick], None] = lambda tick: None) -> SweepState:
        """Ticks until the sweep is over. Ctrl-C ends it in order: local work checkpoints, a scheduler's jobs run on."""
        try:
            self.take_stock()
            # What is known of 100,000 runs is no garbage, and a search of it for some takes a second of a tick.
            gc.freeze()
            while True:
                tick = self.tick() if self._has_begun else self._as_far_as_disk_space(self._begin)
                on_tick(tick)
                if self._has_begun and (self.state.is_over or tick.plan.unschedulable):
                    return self.state
                self._sleep(self.config.tick_seconds)
        except KeyboardInterrupt:
            self._stop_jobs()
            raise
        finally:
            gc.unfreeze()
            self.cluster.stop()
            self.submission.want(False, 0.0)
            self.submission.release()
            try:
                if self._has_begun:
                    self.tuning_file.end(self.state, self.clock(), self.lease.check)
            except LeaseLost:
                # Whoever has taken the sweep over writes it.
                pass
            finally:
                self.lease.release()

    def take_stock(self) -> None:
        """Looks at all runs once, before the first tick: ticks look at those that have changed."""
        end = self.ledger.end
        if end is not None and end.lines >= SNAPSHOT_LINES:
            # The first snapshot has all runs.
            with contextlib.suppress(OSError):
                self._write_snapshot(end)
        if self.growth is not None:
            self.growth.additions(self.state)

    def _sleep(self, seconds: float) -> None:
        """Longer than a lease lasts, too."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _RENEW_SECONDS))
            self.lease.renew()
            self.submission.renew()

    def _begin(self) -> Tick:
        """What comes before the first tick, and that tick."""
        self._file_clock_ahead = self.lease.renew() - time.time()
        self._find_finished()
        # A sweep that is over begins anew where someone has asked for that.
        self._apply_commands()
        if self.state.blocked:
            # What stood in the way may have been set right since: disk space, say, or bounds in the file.
            self._record("unblocked")
        if not self.state.is_over:
            self.submission.check()
            self.code = str(keep_source(self.folder.root))
        self.cluster.start()
        self._has_begun = True
        return self._tick()

    def tick(self) -> Tick:
        """One look at the cluster and what follows from it, or as much of that as there is disk space for."""
        return self._as_far_as_disk_space(self._tick)

    def _as_far_as_disk_space(self, step: Callable[[], Tick]) -> Tick:
        try:
            return step()
        except OSError as error:
            if not is_disk_full(error):
                raise
            # Nothing is known that is not in the ledger: the next tick sees the rest again.
            why = f"disk space for the sweep's own files ({words_for(error)})"
            return Tick(self.state, Plan(), complete=False, queue_read=True, waits_for=f"waits for {why}")

    def _tick(self) -> Tick:
        self._file_clock_ahead = self.lease.renew() - time.time()
        self._apply_commands()
        began = self.clock()
        tokens = self.submission.tokens()
        plan = self._look()
        waits_for = ""
        if plan.submit and self.observation.queue_read:
            waits_for = self.submission.acquire(min(_SUBMISSION_PATIENCE_SECONDS, self.config.tick_seconds))
            if not waits_for and not self.submission.is_unchanged(tokens):
                # Others have submitted since the queue was read.
                plan = self._look()
            self._submit_all(plan.submit if self.observation.queue_read and not waits_for else ())
        if not any(job.job_id is None for job in self.state.jobs.values()):
            # Else a job may exist that no other sweep could see yet.
            self.submission.release()
        self._keep_snapshot()
        self._keep_goodput()
        self.tuning_file.keep(self.state, self.clock(), self.lease.check)
        self._tick_took = max(0.0, self.clock() - began)
        return Tick(self.state, plan, self.observation.complete, self.observation.queue_read, waits_for)

    def _look(self) -> Plan:
        """Takes in what the cluster shows, cancels what is to end, and says what is to be submitted."""
        now = self._observe()
        # A scheduler that is slow to answer must not make this controller look dead.
        self.lease.renew()
        if self.observation.complete:
            self._reconcile_orphaned_jobs()
        self._hold_identical_failures()
        self._stop_after_failures()
        self._grow()
        self._stop_hopeless()
        self._start_branches()
        limits = all_limits(self.config, self.cluster.limits(self.state.jobs.__contains__), self.state)
        plan = decide(self.state, self.config, limits, now, self.estimates.minutes_of, self._ahead())
        waits = any(verdict.kind is VerdictKind.WAIT for verdict in plan.verdicts.values())
        self.submission.want(waits, self._file_clock() + _TICKS_WANTING * self.config.tick_seconds + _RENEW_SECONDS)
        for tag in plan.cancel_pending:
            self._record("withdrawing", tag=tag)
        for move in plan.moves:
            self._record("withdrawing", tag=move.tag, to=move.to, waited_minutes=move.waited_minutes)
        self._send_cancellations(now)
        return plan

    def _ahead(self) -> Ahead | None:
        if not (self.config.successors and self.cluster.queues_successors):
            return None
        return Ahead(
            _TICKS_AHEAD * (self.config.tick_seconds + self._tick_took),
            1 + self.submission.num_wanting(self._file_clock()),
            self._no_successors_until,
            self.times_on_nodes.minutes_of,
        )

    # Observing

    def _observe(self) -> float:
        """Look at all jobs in flight and take in what is new; return the time of the look, in Unix seconds."""
        jobs = list(self.state.jobs.values())
        self.observation = self.cluster.observe([job.identity for job in jobs])
        now = self.clock()
        missing = []
        for job in jobs:
            seen = self.observation.jobs.get(job.tag)
            if seen is not None:
                self.signs.is_listed(job)
                self._absorb(job, seen, now)
            elif self.observation.complete:
                missing.append(job)
        self._give_up_absent_jobs([job for job in missing if self.signs.is_overdue(job, now)], now)
        return now

    def _absorb(self, job: TrackedJob, seen: JobObservation, now: float) -> None:
        if job.job_id is None or (job.submitted_at is None and seen.submitted_at is not None):
            self._record_identity(seen)
        if seen.state is not JobState.PENDING and job.started_at is None and seen.started_at is not None:
            self._record("started", tag=job.tag, at=seen.started_at, nodes=list(seen.nodes))
        if seen.state is JobState.RUNNING and len(seen.nodes) == 1:
            self._compare_speeds(job, seen.nodes[0], now)
        if seen.state is JobState.ENDED:
            if not self.signs.may_still_report(job, seen, now):
                self._end(job, seen, now)
        elif seen.state is JobState.RUNNING and not job.cancelling and self.signs.hangs(job, seen, now):
            self._record("cancelling", tag=job.tag, cause=Cause.HANG.value)
        elif seen.state is JobState.PENDING and not job.cancel_pending and self.signs.is_hopeless(seen, now):
            why = f"can never run: the scheduler gives {seen.reason} as its reason to wait; correct that, then `retry`"
            # It may be for what a successor waits for: submitted alone it will tell.
            held = {} if job.request.after else {"hold": why}
            self._record("withdrawing", tag=job.tag, **held)

    def _compare_speeds(self, job: TrackedJob, node: str, now: float) -> None:
        """Records once that a node is slow, until it is no longer avoided for that."""
        least = self.config.slow_node_factor
        if least is None:
            return
        for attempt in job.request.attempts:
            report = self.cluster.outcome(attempt).report
            if report is not None and report.headway is not None:
                self.speeds.learn(job.request, attempt, node, report.headway)
            factor = self.speeds.times_slower(attempt)
            known = self.state.slow_nodes.get(node)
            is_avoided = known is not None and now - known.at < AVOID_NODE_SECONDS
            if factor is not None and factor >= least and not is_avoided:
                self._record("slow_node", node=node, run=attempt.work.name, factor=factor)

    def _give_up_absent_jobs(self, overdue: Sequence[TrackedJob], now: float) -> None:
        """End the jobs that the cluster, asked for exactly them, does not know either."""
        absent = self.cluster.absent([job.identity for job in overdue]) if overdue else ()
        for job in overdue:
            if job.tag not in absent:
                continue
            reported = self.signs.has_reported(job)
            never_came = job.job_id is None and not reported
            if not never_came or job.cancelling:
                # A queue that forgets a job at its end, without accounting, does not tell of one that was withdrawn. It
                # has held no nodes where one that it waited for is still there; any other may have.
                waited = any(tag in self.state.jobs for tag in job.request.after)
                held_nothing = never_came or (job.cancel_pending and waited and not reported)
                end = JobEnd.CANCELLED if held_nothing else JobEnd.LOST
                self._end(job, JobObservation(job.tag, job.job_id or "", JobState.ENDED, end=end), now)
            else:
                self.signs.forget(job)
                self._record("refused", tag=job.tag, why="it never reached the cluster")
                # Without its request it is not taken in again, should it show up later: its runs are submitted again.
                self.folder.drop_request(job.tag)

    def _reconcile_orphaned_jobs(self) -> None:
        """Jobs of this sweep that the ledger does not have as alive: its line was damaged, or they came so late that
        they had been given up. One whose runs wait is taken in again, any other must end."""
        unwanted = []
        for job in self.cluster.orphaned_jobs(self.state.prefix):
            request = self.folder.read_request(job.tag)
            runs = [self.state.runs.get(attempt.work.name) for attempt in request.attempts] if request else [None]
            if request is not None and all(run is not None and run.is_waiting for run in runs):
                self._intend(request)
                self._record_identity(job)
            else:
                unwanted.append(job)
        if unwanted:
            self.cluster.cancel(unwanted)

    def _send_cancellations(self, now: float) -> None:
        """Cancels the jobs that are to end, again and again: a request may have been lost."""
        for ask, concerned in (
            (self.cluster.cancel, [job for job in self.state.jobs.values() if job.cancelling]),
            (
                self.cluster.cancel_pending,
                [j for j in self.state.jobs.values() if j.cancel_pending and j.started_at is None],
            ),
        ):
            again = max(_REPEAT_CANCEL_SECONDS, self.config.tick_seconds)
            due = [job for job in concerned if now - self._cancel_sent_at.get(job.tag, -math.inf) >= again]
            if due:
                ask([job.identity for job in due])
                self._cancel_sent_at |= dict.fromkeys([job.tag for job in due], now)

    def _end(self, job: TrackedJob, seen: JobObservation, now: float) -> None:
        self.signs.forget(job)
        self._cancel_sent_at.pop(job.tag, None)
        is_withdrawn = job.cancel_pending and seen.end is JobEnd.CANCELLED and job.started_at is None
        # One that a person has cancelled besides must not wait again.
        if is_withdrawn and not job.cancelling:
            held = {"hold": job.hold} if job.hold else {}
            self._record("refused", tag=job.tag, why="cancelled while it was pending", **held)
            self.folder.drop_request(job.tag)
            return
        ends = [self._attempt_end(job, attempt, seen) for attempt in job.request.attempts]
        values = ended_event(job, seen, ends, now)
        for end in ends:
            self.speeds.end(end.attempt)
            if end.cause is Cause.HALVED:
                self.trials.note_stop(end.attempt, end.detail)
            if end.cause is Cause.FINISHED:
                work, ending = end.attempt.work, values["endings"][end.attempt.work.name]
                self.estimates.learn(work, measured_minutes(work))
                if ending["started_at"] is not None:
                    self.times_on_nodes.learn(work, (ending["at"] - ending["started_at"]) / 60)
        struck = {node for end in ends if RULES[end.cause].excludes_node for node in seen.nodes}
        changed = changed_retries(self.config.retries, self.config.max_timeouts)
        # In the ledger, so that replaying it decides as was decided, whatever is set by then.
        as_set = {"retries": changed} if changed else {}
        self._record("ended", tag=job.tag, struck_nodes=sorted(struck), **values, **as_set)
        self.folder.drop_request(job.tag)

    def _attempt_end(self, job: TrackedJob, attempt: Attempt, seen: JobObservation) -> AttemptEnd:
        left = self.cluster.outcome(attempt)
        cause, detail = cause_and_words(left, job, attempt.work, seen)
        has_saved = RULES[cause].free_with_progress and self.state.runs[attempt.work.name].advances(
            left.checkpoint_step
        )
        if RULES[cause].may_be_full_disk and not has_saved:
            error = self.cluster.write_error(attempt) if may_mean_disk_full(left.message) else ""
            if says_disk_full(detail) or says_disk_full(error):
                words = "; ".join(dict.fromkeys(said for said in (detail, error) if said))
                cause, detail = Cause.DISK_FULL, full_disk_words(attempt.folder, words)
            elif error and cause is Cause.CRASH and not left.message:
                cause, detail = Cause.CANNOT_WRITE, error
        return AttemptEnd(attempt, left, cause, detail)

    def _hold_identical_failures(self) -> None:
        """Holds the waiting runs of a group in which several failed in the same way: one bug is paid for once."""
        if self.config.on_alike_failures == "go_on":
            return
        for (detail, group), names in list(self.state.crashes.items()):
            if len(names) < IDENTICAL_FAILURES:
                continue
            waiting = [run.work.name for run in self.state.not_begun() if failure_group(run.work) == group]
            if waiting:
                why = f"{len(names)} runs crashed in the same way: {detail}; fix it, then `retry`"
                self._record("held", runs=waiting, why=why)

    def _stop_after_failures(self) -> None:
        """Holds all runs that have not begun once as many have failed as the cluster's setting allows."""
        most = self.config.stop_after_failures
        if most is None or len(self.state.failed) < most:
            return
        waiting = [run.work.name for run in self.state.not_begun()]
        if waiting:
            why = (
                f"so many runs have failed that no more start (stop_after_failures={most}): correct what those say; "
                "`retry` starts whatever it names, and counts failures anew"
            )
            self._record("held", runs=waiting, why=why)

    def _grow(self) -> None:
        """Records results that are new, and adds the runs that they ask for."""
        if self.growth is None:
            return
        losses = self.trials.new_losses(self.state)
        if losses:
            self._record("results", losses=losses)
        for group, additions in self.growth.additions(self.state).items():
            try:
                runs = [self.trials.added(one, self.growth.study, self.state, self.config) for one in additions]
            except ConfigError as error:
                self._record("blocked", group=group, why=str(error))
            else:
                # All or none: the next look at the group is once all of them have ended.
                self._record("added", runs=runs)

    def _stop_hopeless(self) -> None:
        """Records how far curves have come, and cancels the jobs of runs that could not become the best any more."""
        if self.early_stopping is None:
            return
        losses = self.early_stopping.new_rungs(self.state)
        if losses:
            self._record("rungs", losses=losses)
        for tag, why in self.early_stopping.hopeless_jobs(self.state).items():
            self._record("cancelling", tag=tag, cause=Cause.HALVED.value, runs=list(why), why=why)

    def _start_branches(self) -> None:
        """Lets branches start whose trunk has left their checkpoint, and holds those whose trunk never will."""
        ready, held = self.trials.branches_that_wait_no_longer(self.state)
        if ready:
            self._record("ready", runs=ready)
        for why, runs in held.items():
            self._record("held", runs=runs, why=why)

    def _find_finished(self) -> None:
        """Runs whose result is there already, from this sweep or any other."""
        found = [run.work.name for run in self.state.runs.values() if not run.done and is_finished(run.work)]
        found = [name for name in found if not self.state.runs[name].in_flight]
        if found:
            self._record("found_finished", runs=found)

    def _keep_snapshot(self) -> None:
        end = self.ledger.end
        if end is not None and end.lines - self._snapshot_at >= SNAPSHOT_LINES:
            self._write_snapshot(end)

    def _write_snapshot(self, end: Position) -> None:
        self.lease.check()
        self._snapshots.write(self.definition, self.state, end, self.damage)
        self._snapshot_at = end.lines

    def _keep_goodput(self) -> None:
        """Brings the file up to date that reports read; one that cannot be written now is written at a later tick."""
        charged = {processor: goodput.charged for processor, goodput in self.state.goodput.items()}
        if charged != self._charged_in_file:
            self.lease.check()
            with contextlib.suppress(OSError):
                self.folder.write_goodput(self.state)
                self._charged_in_file = charged

    # Acting

    def _submit_all(self, requests: Sequence[JobRequest]) -> None:
        """Submits until the cluster accepts no more, or the right to submit is lost."""
        for request in requests:
            # One whose predecessor is not there after all is planned anew.
            numbers = [self.state.jobs[tag].job_id for tag in request.after if tag in self.state.jobs]
            after = [number for number in numbers if number is not None]
            if len(after) < len(request.after) or self._takes_no_successor(request):
                continue
            if not self.submission.renew() or not self._submit(replace(request, code=self.code), after):
                return

    def _takes_no_successor(self, request: JobRequest) -> bool:
        return bool(request.after) and self.clock() < self._no_successors_until.get(request.allocation, 0.0)

    def _submit(self, request: JobRequest, after: Sequence[str]) -> bool:
        """Return whether more may be submitted now."""
        self.folder.write_request(request)
        self._intend(request)
        try:
            job_id = self.cluster.submit(request, after)
        except Refused as refusal:
            return self._refused(request, refusal)
        (self._refused_successors if after else self._refusals).pop(request.allocation, None)
        self._record("submitted", tag=request.tag, job_id=job_id)
        return True

    def _intend(self, request: JobRequest) -> None:
        runs = {attempt.work.name: attempt.number for attempt in request.attempts}
        self._record("intended", request, tag=request.tag, allocation=request.allocation, runs=runs)

    def _refused(self, request: JobRequest, refusal: Refused) -> bool:
        if refusal.kind is RefusalKind.MAY_EXIST:
            # The next looks at the cluster will tell.
            return False
        if request.after:
            self._refused_successor(request, refusal)
            return True
        if refusal.kind is RefusalKind.DEFER:
            self._record("refused", tag=request.tag, why=refusal.message)
            wait = doubled(self.config.tick_seconds, self._refusals[request.allocation], _LONGEST_DEFER_SECONDS)
            self._refusals[request.allocation] += 1
            self._record("deferred", allocation=request.allocation, until=self.clock() + wait, why=refusal.message)
            return False
        why = f"the scheduler refuses it: {refusal.message}"
        self._record("refused", tag=request.tag, why=refusal.message, hold=why)
        return True

    def _refused_successor(self, request: JobRequest, refusal: Refused) -> None:
        """It is submitted again, behind nothing: were the request itself wrong, that would show then."""
        self._record("refused", tag=request.tag, why=refusal.message)
        allocation = request.allocation
        if refusal.kind is RefusalKind.DEFER:
            wait = doubled(self.config.tick_seconds, self._refused_successors[allocation], _LONGEST_DEFER_SECONDS)
            self._refused_successors[allocation] += 1
            self._no_successors_until[allocation] = self.clock() + wait
            return
        self._no_successors_until[allocation] = math.inf
        print(
            f"{self.folder.name}: allocation {allocation} takes no jobs that wait for others ({refusal.message}): each "
            "is submitted once there is room for it; `successors: false` in the cluster's file says so from the start",
            file=sys.stderr,
        )

    def _stop_jobs(self) -> None:
        """Asks local work to save itself, and waits for it."""
        if self.cluster.outlives_controller:
            return
        for job in list(self.state.jobs.values()):
            # What is being cancelled for another reason, such as a person's word, stays so.
            names = [attempt.work.name for attempt in job.request.attempts]
            runs = [name for name in names if name not in job.cancelling]
            if runs:
                self._record("cancelling", tag=job.tag, cause=Cause.STOPPED.value, runs=runs)
        self.cluster.cancel([job.identity for job in self.state.jobs.values()])
        deadline = time.monotonic() + 30
        while self.state.jobs and time.monotonic() < deadline:
            self._observe()
            time.sleep(0.1)

    def apply_pending_commands(self) -> None:
        """Carries out the commands that wait, without going on with the sweep, and gives the lease back."""
        try:
            self._apply_commands()
            for tag in list(unwanted_successors(self.state)):
                self._record("withdrawing", tag=tag)
            self._send_cancellations(self.clock())
        finally:
            self.lease.release()

    def set_limits(self, limits: Mapping[str, float]) -> None:
        """The user's own limits, from now on (`SweepState.own_limits`)."""
        if any(self.state.own_limits.get(name) != value for name, value in limits.items()):
            self._record("own_limits", limits=dict(limits))

    def _apply_commands(self) -> None:
        for path, command in self.folder.received():
            event = dict(command)
            name = event.pop("event", None)
            if name in COMMANDS and event.get("command") not in self.state.commands:
                if name == "cancel":
                    self._cancel(event)
                else:
                    self._record(name, **event)
            path.unlink(missing_ok=True)

    def _cancel(self, command: Mapping[str, Any]) -> None:
        names = set(command["runs"])
        for job in list(self.state.jobs.values()):
            # One that has its result is over, whatever else its job is at.
            works = [attempt.work for attempt in job.request.attempts if not is_finished(attempt.work)]
            named = [work.name for work in works if work.name in names]
            if named:
                self._record("cancelling", tag=job.tag, cause=Cause.CANCELLED.value, runs=named)
        self._send_cancellations(self.clock())
        waiting = [name for name in names if name in self.state.runs and self.state.runs[name].is_waiting]
        self._record("held", runs=waiting, why=CANCELLED, command=command["command"])

    def _file_clock(self) -> float:
        return time.time() + self._file_clock_ahead

    def _record_identity(self, seen: JobIdentity | JobObservation) -> None:
        values = {"uid": seen.uid, "submitted_at": seen.submitted_at}
        known = {name: value for name, value in values.items() if value is not None}
        self._record("submitted", tag=seen.tag, job_id=seen.job_id, **known)

    def _record(self, event: str, request: JobRequest | None = None, /, **values: Any) -> None:
        self.state.apply(self.ledger.append(event, **values), request)
