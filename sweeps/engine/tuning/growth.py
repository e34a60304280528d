"""Which runs a sweep adds next: a pure function of its study and of what its ledger holds.

A group is looked at once all of its runs have a result, so that what is added does not depend on which ended first, or
on when a controller was killed. Runs that are added are pending like any other; a group with a run that is held waits
for it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, assert_never

from muloco_runner.record import GroupStanding
from sweeps.engine.tuning.contests import Contest, contest_of, seeds_of_next_look
from sweeps.engine.tuning.coordinates import tuning_verdict
from sweeps.engine.tuning.extend import verdict_on
from sweeps.engine.tuning.group_verdict import Verdict
from sweeps.engine.tuning.study import Coordinates, ExtendRule, Place, Study, TuneRule
from sweeps.engine.tuning.tracked_group import Addition, TrackedGroup, by_place, first_seeds


@dataclass(frozen=True)
class Added:
    """A run that was added."""

    at: Coordinates
    why: str


class Known(Protocol):
    """What a sweep's ledger holds (`sweeps.engine.sweep_state.SweepState`)."""

    @property
    def losses(self) -> Mapping[str, float | None]:
        """Of runs with a result, by name; None for those that diverged."""

    @property
    def stopped(self) -> Mapping[str, str]:
        """Why runs were stopped early, by name; those that went on after all have a loss besides."""

    @property
    def blocked(self) -> Mapping[str, str]:
        """Why no run can be added to a group, by the group's id."""

    @property
    def added(self) -> dict[str, Added]:
        """Runs that were added, by name; the newest is the last."""


class _Seen(NamedTuple):
    """How much of what is known has been taken in."""

    num_losses: int = 0
    newest: tuple[str, Added] | None = None
    """The last addition."""
    num_blocked: int = 0
    num_stopped: int = 0

    @classmethod
    def of(cls, known: Known) -> _Seen:
        newest = next(reversed(known.added.items()), None)
        return cls(len(known.losses), newest, len(known.blocked), len(known.stopped))


class Growth:
    """The groups of one study, brought up to date with each look."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._groups = {group.id: TrackedGroup(group) for group in study.groups}
        self._places: dict[str, Place] = {}
        self._seen = _Seen()
        self._found: dict[str, list[Addition]] | None = None
        """What they ask for; None before the first look."""
        for name, place in study.places.items():
            self._enter(name, place)
            self._groups[place.group].of_file.add(place.setting)

    def _enter(self, name: str, place: Place) -> None:
        self._places[name] = place
        tracked = self._groups[place.group]
        tracked.runs.setdefault(place.setting, name)
        tracked.pending.add(name)
        tracked.is_new = True

    def additions(self, known: Known) -> dict[str, list[Addition]]:
        """Return what is to be added now, by the group's id."""
        # Most looks find nothing new.
        if self._found is None or self._seen != _Seen.of(known):
            self._update(known)
            self._found = self._look(known)
        return self._found

    def _look(self, known: Known) -> dict[str, list[Addition]]:
        found: dict[str, list[Addition]] = {}
        for id, tracked in self._groups.items():
            tracked.blocked = known.blocked.get(id, "")
            if tracked.is_new and not tracked.pending and id not in known.blocked:
                asked = self._asked(tracked) or self._replicates(tracked)
                # Until these are recorded they are asked for again.
                tracked.is_new = bool(asked)
                if asked:
                    found[id] = asked
        for addition in self._undecided(known):
            found.setdefault(addition.place.group, []).append(addition)
        return found

    def _replicates(self, tracked: TrackedGroup) -> list[Addition]:
        """More seeds of the best settings."""
        rule = self.study.replicate
        if rule is None:
            return []
        found: dict[Place, Addition] = {}
        for setting in tracked.results.best_of_batches() if rule.each_batch else []:
            why = f"its setting is the best at its batch, and gets {rule.each_batch} seeds (replicate)"
            found |= by_place(tracked.at_seeds(setting, first_seeds(rule.each_batch, tracked.group.seeds), why))
        for number, setting in enumerate(tracked.results.ranking()[: rule.best]):
            why = f"of its series and size its setting is number {number + 1}, and the best {rule.best} get "
            why += f"{rule.seeds} seeds (replicate)"
            found |= by_place(tracked.at_seeds(setting, first_seeds(rule.seeds, tracked.group.seeds), why))
        return list(found.values())

    def contests(self) -> list[Contest]:
        """Return what is known of each pair, or of each series against the target."""
        rule = self.study.decide
        if rule is None:
            return []
        return [contest_of([self._groups[id] for id in ids], rule.rule) for ids in rule.contests]

    def _undecided(self, known: Known) -> list[Addition]:
        """More seeds of the best settings of what is not decided, the same for both of a pair."""
        rule = self.study.decide
        if rule is None:
            return []
        found: dict[Place, Addition] = {}
        for ids in rule.contests:
            sides = [self._groups[id] for id in ids]
            if not any(one.pending or one.is_new or one.group.id in known.blocked for one in sides):
                found |= by_place(seeds_of_next_look(sides, rule.rule))
        return list(found.values())

    def _update(self, known: Known) -> None:
        """Takes in what is new: of losses, stops and additions none goes, and new ones come last."""
        num_losses, num_stopped = self._seen.num_losses, self._seen.num_stopped
        now = _Seen.of(known)
        if now.newest != self._seen.newest:
            for name, added in known.added.items():
                if name not in self._places and (place := self.study.place_of_added(name, added.at)) is not None:
                    self._enter(name, place)
                    self._groups[place.group].num_added += 1
            # A run may have had its result before it was added.
            num_losses = num_stopped = 0
        for name in itertools.islice(known.stopped, num_stopped, None):
            self._take_in(name, None)
        for name, loss in itertools.islice(known.losses.items(), num_losses, None):
            self._take_in(name, loss, went_on=name in known.stopped)
        self._seen = now

    def _take_in(self, name: str, loss: float | None, went_on: bool = False) -> None:
        """Notes the result of a run; one that went on after it had been stopped has another by now."""
        place = self._places.get(name)
        if place is None:
            return
        tracked = self._groups[place.group]
        by_seed = tracked.results.losses.setdefault(place.setting, {})
        if name in tracked.pending or (went_on and by_seed.get(place.seed) != loss):
            by_seed[place.seed] = loss
            tracked.pending.discard(name)
            tracked.is_new = True

    def _asked(self, tracked: TrackedGroup) -> list[Addition]:
        rule = self.study.grows_by
        if rule is None:
            return []
        tracked.verdict = _verdict(tracked, rule)
        return self._asked_within(tracked, rule)

    def _asked_within(self, tracked: TrackedGroup, rule: ExtendRule | TuneRule) -> list[Addition]:
        """What its verdict wants, as far as the rule's `max_runs` goes."""
        assert tracked.verdict is not None
        runs = [
            Addition(Place(tracked.group.id, one.setting, seed), tracked.runs[one.like], one.why)
            for one in tracked.verdict.wanted
            for seed in tracked.group.seeds
        ]
        left = max(0, rule.max_runs - tracked.num_added)
        match rule:
            case ExtendRule():
                return runs[:left]
            case TuneRule():
                # Half of what a step compares would lead elsewhere.
                return runs if len(runs) <= left else []
            case _:
                assert_never(rule)

    def lines(self, known: Known) -> Iterable[str]:
        """Yield how each group stands, one sentence each."""
        for group in self.standings(known):
            yield f"{group.label}: {self.words_of(group)}"
        for contest in self.contests():
            yield contest.text

    @staticmethod
    def words_of(group: GroupStanding) -> str:
        """Return how a group stands, without its label."""
        return f"{group.standing}; {group.added} runs added" if group.added else f"{group.standing}; nothing added"

    def standings(self, known: Known) -> list[GroupStanding]:
        """Return how each group stands."""
        self.additions(known)
        outside = Counter(added.at.group for name, added in known.added.items() if name not in self._places)
        return [
            GroupStanding(
                one.group.label,
                self._standing(one, known, self.study.grows_by) + _outside_words(outside[one.group.id]),
                one.num_added,
            )
            for one in self._groups.values()
        ]

    def _standing(self, tracked: TrackedGroup, known: Known, rule: ExtendRule | TuneRule | None) -> str:
        if tracked.group.id in known.blocked:
            return f"cannot be extended: {known.blocked[tracked.group.id]}; the next launch tries again"
        if tracked.pending:
            return f"waits for {len(tracked.pending)} of its runs"
        if tracked.verdict is None or rule is None:
            return "all of its runs have ended"
        if tracked.verdict.is_interior:
            return tracked.verdict.settled
        return self._open_words(tracked, rule, tracked.verdict)

    def _open_words(self, tracked: TrackedGroup, rule: ExtendRule | TuneRule, verdict: Verdict) -> str:
        if verdict.bounds:
            return "open: " + "; ".join(verdict.bounds)
        why = verdict.wanted[0].why
        if self._asked_within(tracked, rule):
            return f"goes on: {why}"
        name = "extend" if isinstance(rule, ExtendRule) else "tune"
        return f"open: {name}.max_runs={rule.max_runs} reached: {why}"


def _outside_words(count: int) -> str:
    """What is said of runs that were added earlier and take no part any more."""
    return f"; runs added before that lie outside the values of now and take no part: {count}" if count else ""


def _verdict(tracked: TrackedGroup, rule: ExtendRule | TuneRule) -> Verdict:
    match rule:
        case ExtendRule():
            return verdict_on(tracked.group, tracked.results, rule)
        case TuneRule():
            return tuning_verdict(tracked.group, tracked.results, tracked.of_file, rule)
        case _:
            assert_never(rule)
