"""A sweep at one moment, read from its folder, with what its scheduler says now."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from sweeps.cli.explain import row, why, why_they_wait
from sweeps.cli.filters import select
from sweeps.cli.status import Status, TimeLeft, status_of, time_left
from sweeps.clusters import make_cluster
from sweeps.controller import CANCELLED, COMMANDS
from sweeps.engine.cluster import Cluster, Limits, Refused
from sweeps.engine.decide import decide
from sweeps.engine.outcome import Progress
from sweeps.engine.quota import PER_JOB, Verdict, VerdictKind, all_limits, held_by_sweep
from sweeps.engine.run_states import RunState
from sweeps.engine.sweep_state import Event, SweepState
from sweeps.engine.works import Shape
from sweeps.node.reports import read_progress
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import read_holder
from sweeps.store.submission import Submission
from sweeps.training.wandb_unsent import read_unsent


class Snapshot:
    """A sweep at one moment, read from its folder."""

    def __init__(self, folder: SweepFolder, last_verdicts: Mapping[Shape, Verdict] | None = None) -> None:
        """`last_verdicts` are those of a controller that has just ended: why runs are still waiting."""
        self.folder, self.last_verdicts = folder, last_verdicts
        self.definition: Definition = folder.read_definition()
        self.config = self.definition.read_cluster()
        replay = folder.read_state(self.definition)
        self.state: SweepState = replay.state
        self.damage = replay.damage
        self.now = time.time()
        self.holder = read_holder(folder.lease_dir)
        self.is_controlled = self.holder is not None and self.holder.is_alive
        self.owner = folder.owner
        """Whose sweep it is, where it is not the reader's."""
        self._progress: dict[str, Progress | None] = {}

    def selected(self, filters: Sequence[str]) -> list[RunState]:
        return [self.state.runs[work.name] for work in select(self.state.runs.works, filters)]

    def foresee(self, commands: Sequence[Event]) -> None:
        """Let the state be as it will be once the controller has carried out these commands that wait for it.

        The end of a running job is not foreseen: until then its runs are as they are.
        """
        for command in commands:
            if command.get("event") not in COMMANDS or command.get("command") in self.state.commands:
                continue
            event = {"time": self.now, **command}
            if event["event"] == "cancel":
                runs = (self.state.runs[name] for name in event["runs"] if name in self.state.runs)
                waiting = [run.work.name for run in runs if run.is_waiting]
                event |= {"event": "held", "runs": waiting, "why": CANCELLED}
            self.state.apply(event)

    def status(self, chosen: Sequence[RunState] | None) -> Status:
        """Return the status of the chosen runs, or of all."""
        return status_of(
            self.folder.name,
            self.state,
            self.config,
            chosen,
            lambda counters: why_they_wait(counters, self.state, self.verdicts, self.now, self.has_verdicts),
            self.pending,
            self.progress,
            self.now,
            self.holder if self.is_controlled else None,
            self.damage,
            self.waits_for,
            read_unsent(self.folder.path),
        )

    def reason(self, run: RunState) -> str:
        if run.status == "submitted":
            return self.pending.get(run.attempts[-1].tag, "")
        return why(run, self.state, self.verdicts, self.now, self.has_verdicts)

    def progress(self, run: RunState) -> Progress | None:
        """Return the progress that the running attempt's heartbeat reports, read once; None for work without one."""
        if run.work.name not in self._progress:
            progress = read_progress(run.work)
            is_own = progress is not None and progress.attempt == run.attempts[-1].number
            self._progress[run.work.name] = progress if is_own else None
        return self._progress[run.work.name]

    def time_left(self, run: RunState) -> TimeLeft | None:
        """Return how long the run has yet to work; None where it is done or held."""
        if run.done or run.held is not None:
            return None
        return time_left(run, self.state, self.progress(run) if run.in_flight else None, self.now)

    def to_dict(self, chosen: Sequence[RunState] | None = None) -> dict[str, Any]:
        """Return the values of `--json`: the chosen runs, or all, each with its history."""
        runs = self.state.runs.values() if chosen is None else chosen
        rows = [row(run, self.reason(run), self.time_left(run)) for run in runs]
        return {**self.settings(), **self.status(chosen).to_dict(), "runs": rows}

    @property
    def has_verdicts(self) -> bool:
        """Whether a controller knows why runs wait; else they wait for one."""
        return self.is_controlled or self.last_verdicts is not None

    @cached_property
    def verdicts(self) -> Mapping[Shape, Verdict]:
        """The verdicts that the controller would give now, by shape of the waiting runs."""
        if self.last_verdicts is not None:
            return self.last_verdicts
        if not self.is_controlled or not self.state.counts["waiting"]:
            return {}
        if self._is_unseen:
            return dict.fromkeys(
                self.state.waiting, Verdict(VerdictKind.WAIT, f"only {self.owner} sees for which limit")
            )
        try:
            live = self._cluster.limits(self.folder.owns)
        except (OSError, Refused):
            return {}
        return decide(self.state, self.config, all_limits(self.config, live, self.state), self.now).verdicts

    def limits(self) -> list[dict[str, Any]]:
        """Return all limits as they are now, with what this sweep and others use of them."""
        try:
            live = Limits() if self._is_unseen else self._cluster.limits(self.folder.owns)
        except (OSError, Refused):
            live = Limits()
        used = held_by_sweep(self.config, self.state)
        return [
            {
                "allocation": name,
                "limit": limit.name,
                "resource": limit.resource.value,
                "most": limit.most,
                "used": used[name].of.get(limit.resource, 0.0) if limit.resource not in PER_JOB else 0.0,
                "used_by_others": limit.used_by_others,
            }
            for name, limits in all_limits(self.config, live, self.state).items()
            for limit in limits
        ]

    @cached_property
    def pending(self) -> Mapping[str, str]:
        """The scheduler's reason for each pending job, by tag; empty where it does not answer."""
        jobs = [job.identity for job in self.state.jobs.values() if job.started_at is None]
        # Observing local slots starts them, which only the controller may do.
        if not jobs or not self._cluster.outlives_controller:
            return {}
        if self._is_unseen:
            return {job.tag: f"only {self.owner} sees why" for job in jobs}
        try:
            return {tag: seen.reason for tag, seen in self._cluster.observe(jobs).jobs.items()}
        except OSError:
            return {}

    @property
    def waits_for(self) -> str:
        """Whom the controller waits for before it may submit; empty where it need not, or that is not seen here."""
        if self.holder is None or self.owner is not None or not self.verdicts or not self.is_controlled:
            # Without verdicts nothing waits, or the scheduler does not answer, which knows the names of the leases.
            return ""
        try:
            return Submission(self._cluster.submission_scopes).held_by_another(self.holder)
        except (OSError, Refused):
            return ""

    @property
    def _is_unseen(self) -> bool:
        """Whether the reader's own jobs and limits, which a scheduler shows, are not the sweep's."""
        return self.owner is not None and self._cluster.outlives_controller

    @cached_property
    def _cluster(self) -> Cluster:
        return make_cluster(self.config, self.folder.cluster_dir)

    def settings(self) -> dict[str, Any]:
        return {
            "sweep": self.folder.name,
            "controlled": self.is_controlled,
            "is_over": self.state.is_over,
            "paused": self.state.paused,
            "own_limits": self.state.own_limits,
            "gpu_hours": self.state.spent_gpu_hours,
        }
