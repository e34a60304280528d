"""Which runs a sweep adds next: a pure function of its study and of what its ledger holds.

A group is looked at once all of its runs have a result, so that what is added does not depend on which ended first, or
on when a controller was killed. Runs that are added are pending like any other; a group with a run that is held waits
for it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, assert_never

from muloco_runner.record import ContestStanding, GroupStanding
from sweeps.engine.tuning.benchmark_rules import (
    BenchmarkPair,
    BenchmarkResult,
    BenchmarkTarget,
    Entry,
    judge_pair,
    judge_target,
)
from sweeps.engine.tuning.coordinates import tuning_verdict
from sweeps.engine.tuning.extend import verdict_on
from sweeps.engine.tuning.group_verdict import Verdict
from sweeps.engine.tuning.sequential import FIRST_SEEDS, MORE_SEEDS, Outcome, PairResult, PairRule, judge
from sweeps.engine.tuning.study import (
    ContestRule,
    Coordinates,
    ExtendRule,
    Group,
    Place,
    Results,
    Setting,
    Study,
    TuneRule,
)


@dataclass(frozen=True)
class Addition:
    """A run that a rule asks for."""

    place: Place
    like: str
    """Name of a run of the sweep that differs from it in extended keys and the seed alone."""
    why: str


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


@dataclass(frozen=True)
class Contest:
    """What is known of a pair of groups, or of one against a target."""

    groups: tuple[Group, ...]
    result: PairResult | BenchmarkResult
    why_open: str = ""
    """Why nothing can be added to what is open; empty where something can, or nothing need."""

    @property
    def text(self) -> str:
        return f"{self.scale}: {self.outcome}"

    @property
    def scale(self) -> str:
        """Both where steps saved are counted between two."""
        return _scales(self.groups)

    @property
    def outcome(self) -> str:
        words = self.result.to_text(*(group.series for group in self.groups))
        return f"{words}; nothing is added: {self.why_open}" if self.why_open else words

    @property
    def standing(self) -> ContestStanding:
        """The same for reports."""
        return ContestStanding(self.scale, self.outcome, self.result.sd, self.result.num_seeds)


@dataclass
class _Tracked:
    """One group as it is now."""

    group: Group
    results: Results = field(default_factory=Results)
    runs: dict[Setting, str] = field(default_factory=dict)
    """The first run of each setting."""
    pending: set[str] = field(default_factory=set)
    of_file: set[Setting] = field(default_factory=set)
    num_added: int = 0
    is_new: bool = True
    """Whether it has changed since it was last looked at."""
    verdict: Verdict | None = None
    blocked: str = ""
    """Why nothing can be added to it."""


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
        self._groups = {group.id: _Tracked(group) for group in study.groups}
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

    def _replicates(self, tracked: _Tracked) -> list[Addition]:
        """More seeds of the best settings."""
        rule = self.study.replicate
        if rule is None:
            return []
        found: dict[Place, Addition] = {}
        for setting in tracked.results.best_of_batches() if rule.each_batch else []:
            why = f"its setting is the best at its batch, and gets {rule.each_batch} seeds (replicate)"
            found |= _by_place(_seeded(tracked, setting, _first_seeds(rule.each_batch, tracked.group.seeds), why))
        for number, setting in enumerate(tracked.results.ranking()[: rule.best]):
            why = f"of its series and size its setting is number {number + 1}, and the best {rule.best} get "
            why += f"{rule.seeds} seeds (replicate)"
            found |= _by_place(_seeded(tracked, setting, _first_seeds(rule.seeds, tracked.group.seeds), why))
        return list(found.values())

    def contests(self) -> list[Contest]:
        """Return what is known of each pair, or of each series against the target."""
        rule = self.study.decide
        if rule is None:
            return []
        out = []
        for ids in rule.contests:
            sides = [self._groups[id] for id in ids]
            result = _judged(sides, _best_of_each(sides), rule.rule)
            why = "" if result.outcome is not Outcome.OPEN else "; ".join(map(_why_nothing, sides)).strip("; ")
            out.append(Contest(tuple(side.group for side in sides), result, why))
        return out

    def _undecided(self, known: Known) -> list[Addition]:
        """More seeds of the best settings of what is not decided, the same for both of a pair."""
        rule = self.study.decide
        if rule is None:
            return []
        found: dict[Place, Addition] = {}
        for ids in rule.contests:
            sides = [self._groups[id] for id in ids]
            if any(one.pending or one.is_new or one.group.id in known.blocked for one in sides):
                continue
            best = _best_of_each(sides)
            if best is None or any(map(_why_nothing, sides)):
                continue
            result = _judged(sides, best, rule.rule)
            if result.outcome is not Outcome.OPEN:
                continue
            num = min(max(FIRST_SEEDS, result.num_seeds + MORE_SEEDS), rule.rule.max_seeds)
            seeds = _seeds_of_look(sides, best, num)
            names = " against ".join(one.group.series for one in sides)
            why = f"{names} at {_scales([one.group for one in sides])} is open after {result.num_seeds} seeds (decide)"
            for one, setting in zip(sides, best, strict=True):
                found |= _by_place(_seeded(one, setting, seeds, why))
        return list(found.values())

    def _update(self, known: Known) -> None:
        """Takes in what is new: no mapping loses a key, and new ones come last."""
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

    def _asked(self, tracked: _Tracked) -> list[Addition]:
        rule = self.study.grows_by
        if rule is None:
            return []
        tracked.verdict = _verdict(tracked, rule)
        return self._asked_within(tracked, rule)

    def _asked_within(self, tracked: _Tracked, rule: ExtendRule | TuneRule) -> list[Addition]:
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

    def _standing(self, tracked: _Tracked, known: Known, rule: ExtendRule | TuneRule | None) -> str:
        if tracked.group.id in known.blocked:
            return f"cannot be extended: {known.blocked[tracked.group.id]}; the next launch tries again"
        if tracked.pending:
            return f"waits for {len(tracked.pending)} of its runs"
        if tracked.verdict is None or rule is None:
            return "all of its runs have ended"
        if tracked.verdict.is_interior:
            return tracked.verdict.settled
        return self._open_words(tracked, rule, tracked.verdict)

    def _open_words(self, tracked: _Tracked, rule: ExtendRule | TuneRule, verdict: Verdict) -> str:
        if verdict.bounds:
            return "open: " + "; ".join(verdict.bounds)
        why = verdict.wanted[0].why
        if self._asked_within(tracked, rule):
            return f"goes on: {why}"
        name = "extend" if isinstance(rule, ExtendRule) else "tune"
        return f"open: {name}.max_runs={rule.max_runs} reached: {why}"


def _scales(groups: Iterable[Group]) -> str:
    return " against ".join(dict.fromkeys(group.scale for group in groups))


def _outside_words(count: int) -> str:
    """What is said of runs that were added earlier and take no part any more."""
    return f"; runs added before that lie outside the values of now and take no part: {count}" if count else ""


def _verdict(tracked: _Tracked, rule: ExtendRule | TuneRule) -> Verdict:
    match rule:
        case ExtendRule():
            return verdict_on(tracked.group, tracked.results, rule)
        case TuneRule():
            return tuning_verdict(tracked.group, tracked.results, tracked.of_file, rule)
        case _:
            assert_never(rule)


def _best_of_each(sides: Sequence[_Tracked]) -> list[Setting] | None:
    """None where one has no setting that takes part."""
    rankings = [side.results.ranking() for side in sides]
    return [ranking[0] for ranking in rankings] if all(rankings) else None


def _judged(
    sides: Sequence[_Tracked], best: Sequence[Setting] | None, rule: ContestRule
) -> PairResult | BenchmarkResult:
    """What the rule says of the best settings, by seeds that had no part in their choice."""
    settings: Sequence[Setting | None] = best if best is not None else [None] * len(sides)
    entries = [_entry(side, setting) for side, setting in zip(sides, settings, strict=True)]
    match rule:
        case PairRule():
            first, second = (entry.losses for entry in entries)
            return judge([first[seed] - second[seed] for seed in first if seed in second], rule)
        case BenchmarkPair():
            return judge_pair(entries[0], entries[1], rule)
        case BenchmarkTarget():
            return judge_target(entries[0], rule)
        case _:
            assert_never(rule)


def _why_nothing(side: _Tracked) -> str:
    """Why no seed can be added that took no part in the choice of its best setting; empty where one can."""
    if side.blocked:
        return f"{side.group.label} has a run that cannot be made: {side.blocked}"
    if side.pending:
        return ""
    best = next(iter(side.results.ranking()), None)
    if best is None:
        return f"no setting of {side.group.label} has a loss"
    if not side.results.takes_fresh(best):
        return f"settings of {side.group.label} have no seed in common, so that every seed of the best chose it"
    return ""


def _seeds_of_look(sides: Sequence[_Tracked], best: Sequence[Setting], count: int) -> list[int]:
    """So many seeds that took no part in the choice of either: those that both have, then new ones."""
    tried = [side.results.losses[setting] for side, setting in zip(sides, best, strict=True)]
    fresh = [side.results.fresh(setting).keys() for side, setting in zip(sides, best, strict=True)]
    shared = sorted(set.intersection(*map(set, fresh)))
    used = {seed for side, setting in zip(sides, best, strict=True) for seed in side.results.chose(setting)}
    used |= {seed for losses in tried for seed, loss in losses.items() if loss is None}
    # Beyond the others: looks go by growing seeds.
    below = range(max(shared, default=-1) + 1)
    return [*shared, *_fresh_seeds(max(0, count - len(shared)), {*used, *below})]


def _entry(side: _Tracked, setting: Setting | None) -> Entry:
    losses = side.results.fresh(setting) if setting is not None else {}
    batch = side.group.batches.values[setting.batch if setting is not None else 0]
    return Entry({seed: losses[seed] for seed in sorted(losses)}, side.group.budget_tokens, batch)


def _by_place(additions: Iterable[Addition]) -> dict[Place, Addition]:
    return {addition.place: addition for addition in additions}


def _first_seeds(count: int, of_file: Sequence[int]) -> list[int]:
    """So many seeds, those of the sweep file first."""
    return [*of_file, *_fresh_seeds(count, of_file)][:count]


def _fresh_seeds(count: int, used: Iterable[int]) -> list[int]:
    """The smallest seeds that are not used."""
    taken = set(used)
    return list(itertools.islice((seed for seed in itertools.count() if seed not in taken), count))


def _seeded(tracked: _Tracked, setting: Setting, seeds: Iterable[int], why: str) -> list[Addition]:
    """The setting at those of the seeds that it has not been run with."""
    known = tracked.results.losses[setting]
    return [
        Addition(Place(tracked.group.id, setting, seed), tracked.runs[setting], why)
        for seed in seeds
        if seed not in known
    ]
