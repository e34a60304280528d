"""Which runs of a sweep are stopped early by `halve`: their curves, as they come to their rungs, and what follows.

Curves are in the ledger before anything is decided by them; what is decided is in it before a job is cancelled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from sweeps.engine.sweep_state import SweepState, TrackedJob
from sweeps.engine.tuning.halving import END, HalveRule, why_hopeless
from sweeps.engine.tuning.study import Place, Study
from sweeps.engine.work import Work

Cell = tuple[str, int]
"""A group and the position of a batch: runs that are compared."""


class EarlyStopping:
    """Follows the runs of one study. It keeps nothing that the ledger does not have."""

    def __init__(
        self,
        study: Study,
        rule: HalveRule,
        losses_at: Callable[[Work, Sequence[str]], dict[str, float]],
        is_finished: Callable[[Work], bool],
    ) -> None:
        """`losses_at` gives a run's training losses at those of the shares that it has come to; `is_finished` tells
        whether it has its result."""
        self.study, self.rule = study, rule
        self.losses_at, self.is_finished = losses_at, is_finished
        self._places: dict[str, Place] = {}
        self._cells: dict[Cell, list[str]] = {}
        self._num_scored = 0
        """Results of the ledger that have been taken in."""
        self._judged: tuple[int, frozenset[str]] | None = None
        """`SweepState.num_rungs` and the jobs at work when they were last judged."""
        for name, place in study.places.items():
            self._enter(name, place)

    def _enter(self, name: str, place: Place) -> None:
        if name not in self._places:
            self._places[name] = place
            self._cells.setdefault((place.group, place.setting.batch), []).append(name)

    def new_rungs(self, state: SweepState) -> dict[str, dict[str, float]]:
        """Return training losses by share, by name, of runs that have come to a rung or to their end since the last
        look."""
        for name, added in state.added.items():
            if name not in self._places and (place := self.study.place_of_added(name, added.at)) is not None:
                self._enter(name, place)
        works = [
            attempt.work
            for job in state.jobs.values()
            if job.started_at is not None
            for attempt in job.request.attempts
        ]
        found = {work.name: self._losses_at(work, self.rule.rungs, state) for work in works}
        scored = list(itertools.islice(state.losses.items(), self._num_scored, None))
        self._num_scored = len(state.losses)
        for name, loss in scored:
            # One that diverged says nothing of what another may gain.
            if loss is not None and name in state.runs and END not in state.rungs.get(name, {}):
                found[name] = self._losses_at(state.runs[name].work, (*self.rule.rungs, END), state)
        return {name: losses for name, losses in found.items() if losses}

    def _losses_at(self, work: Work, shares: Iterable[str], state: SweepState) -> dict[str, float]:
        known = state.rungs.get(work.name, {})
        missing = [share for share in shares if share not in known]
        return self.losses_at(work, missing) if missing and work.name in self._places else {}

    def hopeless_jobs(self, state: SweepState) -> dict[str, dict[str, str]]:
        """Return the jobs that are to be cancelled now, by tag: which of their runs are stopped, and why.

        Of a job of several runs all must have finished or be hopeless: its others would end with it.
        """
        jobs = [job for job in state.jobs.values() if job.started_at is not None and not job.is_ending]
        judged = state.num_rungs, frozenset(job.tag for job in jobs)
        if self._judged == judged:
            return {}
        self._judged = judged
        whys = {job.tag: self._whys(job, state) for job in jobs}
        return {tag: of_runs for tag, of_runs in whys.items() if of_runs}

    def _whys(self, job: TrackedJob, state: SweepState) -> dict[str, str]:
        """Empty where the job goes on."""
        whys = {}
        for attempt in job.request.attempts:
            why = self._why(attempt.work.name, state)
            if why is not None:
                whys[attempt.work.name] = why
            elif not self.is_finished(attempt.work):
                return {}
        return whys

    def _why(self, name: str, state: SweepState) -> str | None:
        place = self._places.get(name)
        run = state.runs.get(name)
        if place is None or run is None or name not in state.rungs or run.released_after:
            # Somebody who has said `retry` wants to see its end.
            return None
        if place.seed not in self.study.by_id[place.group].seeds:
            # A seed of one of the best settings.
            return None
        cell = self._cells[place.group, place.setting.batch]
        return why_hopeless(name, {one: state.rungs[one] for one in cell if one in state.rungs}, self.rule)
