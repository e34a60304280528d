"""The two formulas of the public 124M benchmark (modded-nanogpt's optimization benchmark) as rules for `decide:`.

Both take the standard deviation between seeds for known, .0013 nat, and ask for a margin of .004 nat over the square
root of the number of seeds: about three standard deviations of the mean, one-sided. They were made for one look at
runs of that model; here they are asked at each look, and what the seeds spread in truth is said beside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sweeps.engine.tuning.sequential import FIRST_SEEDS, MORE_SEEDS, Outcome

SIGMA = 0.0013
"""Standard deviation between seeds that the formulas take for known; nats."""
MARGIN = 0.004
"""Nats, for one seed."""
NATS_PER_100_STEPS = 0.0045
"""What a hundred steps more are worth near the end of a run there."""
_QUANTILE = 2.326
"""Of the normal distribution: seeds that spread as assumed are called wider in one case of a hundred."""


@dataclass(frozen=True)
class BenchmarkPair:
    """`decide: {rule: nanogpt_pair}`: (loss difference + steps saved / 100 * .0045) / sqrt(1/n1 + 1/n2) >= .004."""

    max_seeds: int = 20


@dataclass(frozen=True)
class BenchmarkTarget:
    """`decide: {rule: nanogpt_target}`: (target - mean loss) * sqrt(n) >= .004."""

    target: float
    """Nats per token."""
    max_seeds: int = 20


class Entry(NamedTuple):
    """The best setting of one series at one size."""

    losses: Mapping[int, float]
    """By seed, of the seeds that had no part in its choice; in the order in which they were added."""
    budget_tokens: float
    """Of one run."""
    batch_tokens: float


@dataclass(frozen=True)
class BenchmarkResult:
    """What a formula says."""

    outcome: Outcome
    num_seeds: int
    margin: float | None = None
    """The formula's left side; None below the first look."""
    sd: float | None = None
    """Standard deviation between the seeds of one series, in nats, as measured."""
    steps_saved: float = 0.0
    target: float | None = None
    """None for a pair."""
    spreads_wider: bool = False
    """Whether the seeds spread more than the formula takes for known."""

    def to_text(self, first: str, second: str = "") -> str:
        """Return it in words; `second` is empty for a target."""
        against = f"a loss of {self.target:g}" if self.target is not None else second
        if self.margin is None:
            return f"{first} against {against}: open, {self.num_seeds} seeds"
        words = {
            Outcome.FIRST: f"{first} reaches {against}"
            if self.target is not None
            else f"{first} is better than {second}",
            Outcome.SECOND: f"{first} misses {against}"
            if self.target is not None
            else f"{second} is better than {first}",
            Outcome.TIE: f"{first} against {against}: not told apart",
            Outcome.OPEN: f"{first} against {against}: open",
        }
        saved = f", {self.steps_saved:+,.0f} steps saved" if self.steps_saved else ""
        wider = (
            "; seeds spread wider than the formula assumes: its error rate does not hold" if self.spreads_wider else ""
        )
        return (
            f"{words[self.outcome]} by the 124M benchmark's formula: {self.margin:+.4f} of {MARGIN:g} needed{saved}, "
            f"sigma {SIGMA:g} assumed, {self.sd:.4f} measured, {self.num_seeds} seeds{wider}"
        )


def judge_pair(first: Entry, second: Entry, rule: BenchmarkPair) -> BenchmarkResult:
    """Return what the losses so far decide; the first look that decides counts.

    Looks are taken at four seeds of both, and at every second one after those. Steps saved are counted at the second's
    batch, so that a larger batch alone saves none.
    """
    saved = (second.budget_tokens - first.budget_tokens) / second.batch_tokens
    shared = [seed for seed in first.losses if seed in second.losses]
    result = BenchmarkResult(Outcome.OPEN, len(shared))
    for num in _looks(len(shared), rule.max_seeds):
        ours, theirs = ([one.losses[seed] for seed in shared[:num]] for one in (first, second))
        ahead = _mean(theirs) - _mean(ours) + saved / 100 * NATS_PER_100_STEPS
        margin = ahead / math.sqrt(2 / num)
        result = _result(margin, num, rule.max_seeds, [ours, theirs], steps_saved=saved)
        if result.outcome is not Outcome.OPEN:
            return result
    return result


def judge_target(entry: Entry, rule: BenchmarkTarget) -> BenchmarkResult:
    """Return whether the losses so far reach the target; the first look that decides counts, as for `judge_pair`.

    A series misses the target where the formula with both signs turned holds.
    """
    losses = list(entry.losses.values())
    result = BenchmarkResult(Outcome.OPEN, len(losses), target=rule.target)
    for num in _looks(len(losses), rule.max_seeds):
        margin = (rule.target - _mean(losses[:num])) * math.sqrt(num)
        result = _result(margin, num, rule.max_seeds, [losses[:num]], target=rule.target)
        if result.outcome is not Outcome.OPEN:
            return result
    return result


def _looks(num_seeds: int, max_seeds: int) -> Iterator[int]:
    """Numbers of seeds at which a look is taken."""
    num = FIRST_SEEDS
    while num <= min(num_seeds, max_seeds):
        yield num
        if num == max_seeds:
            return
        num = min(num + MORE_SEEDS, max_seeds)


def _result(
    margin: float,
    num: int,
    max_seeds: int,
    samples: Sequence[Sequence[float]],
    steps_saved: float = 0.0,
    target: float | None = None,
) -> BenchmarkResult:
    if margin >= MARGIN:
        outcome = Outcome.FIRST
    elif -margin >= MARGIN:
        outcome = Outcome.SECOND
    else:
        outcome = Outcome.TIE if num >= max_seeds else Outcome.OPEN
    squares = sum((loss - _mean(losses)) ** 2 for losses in samples for loss in losses)
    freedom = len(samples) * (num - 1)
    # The upper quantile of chi squared, by Wilson and Hilferty.
    most = freedom * (1 - 2 / (9 * freedom) + _QUANTILE * math.sqrt(2 / (9 * freedom))) ** 3
    sd = math.sqrt(squares / freedom)
    return BenchmarkResult(outcome, num, margin, sd, steps_saved, target, squares / SIGMA**2 > most)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
