"""Contests of `decide:`: series judged against each other, or against a target, at their best settings, and the seeds
that open ones need.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from muloco_runner.record import ContestStanding
from sweeps.engine.tuning.benchmark_rules import (
    BenchmarkPair,
    BenchmarkResult,
    BenchmarkTarget,
    Entry,
    judge_pair,
    judge_target,
)
from sweeps.engine.tuning.sequential import FIRST_SEEDS, MORE_SEEDS, Outcome, PairResult, PairRule, judge
from sweeps.engine.tuning.study import ContestRule, Group, Setting
from sweeps.engine.tuning.tracked_group import Addition, TrackedGroup, fresh_seeds


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


def contest_of(sides: Sequence[TrackedGroup], rule: ContestRule) -> Contest:
    """Return what is known of these groups against each other, or of one against the rule's target."""
    result = _judged(sides, _best_of_each(sides), rule)
    why = "" if result.outcome is not Outcome.OPEN else "; ".join(map(_why_nothing, sides)).strip("; ")
    return Contest(tuple(side.group for side in sides), result, why)


def seeds_of_next_look(sides: Sequence[TrackedGroup], rule: ContestRule) -> list[Addition]:
    """Return more seeds of the best settings, the same for all sides; none where it is decided or none can be added."""
    best = _best_of_each(sides)
    if best is None or any(map(_why_nothing, sides)):
        return []
    result = _judged(sides, best, rule)
    if result.outcome is not Outcome.OPEN:
        return []
    num = min(max(FIRST_SEEDS, result.num_seeds + MORE_SEEDS), rule.max_seeds)
    seeds = _seeds_of_look(sides, best, num)
    names = " against ".join(one.group.series for one in sides)
    why = f"{names} at {_scales([one.group for one in sides])} is open after {result.num_seeds} seeds (decide)"
    return [more for one, setting in zip(sides, best, strict=True) for more in one.at_seeds(setting, seeds, why)]


def _scales(groups: Iterable[Group]) -> str:
    return " against ".join(dict.fromkeys(group.scale for group in groups))


def _best_of_each(sides: Sequence[TrackedGroup]) -> list[Setting] | None:
    """None where one has no setting that takes part."""
    rankings = [side.results.ranking() for side in sides]
    return [ranking[0] for ranking in rankings] if all(rankings) else None


def _judged(
    sides: Sequence[TrackedGroup], best: Sequence[Setting] | None, rule: ContestRule
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


def _why_nothing(side: TrackedGroup) -> str:
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


def _seeds_of_look(sides: Sequence[TrackedGroup], best: Sequence[Setting], count: int) -> list[int]:
    """So many seeds that took no part in the choice of either: those that both have, then new ones."""
    tried = [side.results.losses[setting] for side, setting in zip(sides, best, strict=True)]
    fresh = [side.results.fresh(setting).keys() for side, setting in zip(sides, best, strict=True)]
    shared = sorted(set.intersection(*map(set, fresh)))
    used = {seed for side, setting in zip(sides, best, strict=True) for seed in side.results.chose(setting)}
    used |= {seed for losses in tried for seed, loss in losses.items() if loss is None}
    # Beyond the others: looks go by growing seeds.
    below = range(max(shared, default=-1) + 1)
    return [*shared, *fresh_seeds(max(0, count - len(shared)), {*used, *below})]


def _entry(side: TrackedGroup, setting: Setting | None) -> Entry:
    losses = side.results.fresh(setting) if setting is not None else {}
    batch = side.group.batches.values[setting.batch if setting is not None else 0]
    return Entry({seed: losses[seed] for seed in sorted(losses)}, side.group.budget_tokens, batch)
