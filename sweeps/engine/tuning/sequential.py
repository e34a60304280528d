"""A sequential test of a mean difference whose error rate holds however often one looks.

The differences between two series, seed by seed, are taken for independent draws of one normal distribution of unknown
mean and spread. The Gaussian mixture of the t-test's likelihood ratio is a test martingale, so by Ville's inequality
the intervals below hold the mean at every number of seeds at once with the stated confidence (Wang and Ramdas,
Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance, arXiv 2310.03722).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

_EFFECT = 2.0
"""Standard deviation, in those of the differences, of the effects that the mixture expects: the choice makes intervals
of five to twenty seeds narrow, and leaves their confidence as it is."""


FIRST_SEEDS = 4
"""Of both at the first look: fewer decide nothing."""
MORE_SEEDS = 2
"""Added for each later look."""


class Outcome(Enum):
    """What is known of a pair, or of a series against a target."""

    FIRST = "the first is better"
    SECOND = "the second is better"
    TIE = "a tie"
    OPEN = "open"


@dataclass(frozen=True)
class PairRule:
    """When a pair is decided. Losses in nats."""

    gap: float
    """Differences within this are a tie."""
    confidence: float = 0.95
    """Of each pair at each size, over all looks."""
    max_seeds: int = 20
    """A pair that is not decided by then is a tie: it was not told apart."""


@dataclass(frozen=True)
class PairResult:
    """What a pair's differences say: the first's losses minus the second's."""

    outcome: Outcome
    num_seeds: int
    mean: float | None
    sd: float | None
    """Standard deviation of the differences; None below two seeds."""
    interval: tuple[float, float]
    """Holds the mean difference at every look with the rule's confidence; infinite for few seeds."""

    def to_text(self, first: str, second: str) -> str:
        """Return it in words."""
        if self.mean is None or self.sd is None:
            return f"{first} against {second}: open, {self.num_seeds} seeds in common"
        words = {
            Outcome.FIRST: f"{first} is better than {second}",
            Outcome.SECOND: f"{second} is better than {first}",
            Outcome.TIE: f"{first} and {second} are a tie",
            Outcome.OPEN: f"{first} against {second} is open",
        }
        low, high = self.interval
        within = f"within {low:+.4f} to {high:+.4f}" if math.isfinite(low) else "without an interval yet"
        return (
            f"{words[self.outcome]}: difference {self.mean:+.4f} {within}, sigma {self.sd:.4f}, {self.num_seeds} seeds"
        )


def estimate(differences: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Mean and standard deviation of two differences or more, and half the width of the interval around the mean."""
    num = len(differences)
    mean = sum(differences) / num
    sd = math.sqrt(sum((one - mean) ** 2 for one in differences) / (num - 1))
    return mean, sd, _half_width(num, sd, 1 - confidence)


def _half_width(num: int, sd: float, alpha: float) -> float:
    """Infinite where `num` differences are too few."""
    spread = 1 + num * _EFFECT**2
    ratio = math.exp((2 / num) * (0.5 * math.log(spread) - math.log(alpha)))
    if ratio >= spread:
        return math.inf
    return sd * math.sqrt((num - 1) / num * (ratio - 1) / (1 - ratio / spread))


def judge(differences: Sequence[float], rule: PairRule) -> PairResult:
    """Return what the differences so far, in the order in which seeds were added, decide.

    The first look that decides counts: what came later changes nothing.
    """
    if len(differences) < 2:
        mean = differences[0] if differences else None
        return PairResult(Outcome.OPEN, len(differences), mean, None, (-math.inf, math.inf))
    for num in range(2, len(differences) + 1):
        result = _look(differences[:num], rule)
        if result.outcome is not Outcome.OPEN:
            return result
    return result


def _look(differences: Sequence[float], rule: PairRule) -> PairResult:
    num = len(differences)
    mean, sd, half = estimate(differences, rule.confidence)
    low, high = mean - half, mean + half
    if high < 0:
        outcome = Outcome.FIRST
    elif low > 0:
        outcome = Outcome.SECOND
    elif (low >= -rule.gap and high <= rule.gap) or num >= rule.max_seeds:
        outcome = Outcome.TIE
    else:
        outcome = Outcome.OPEN
    return PairResult(outcome, num, mean, sd, (low, high))
