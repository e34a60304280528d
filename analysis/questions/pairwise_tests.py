"""Which series differ: tests by one rule that is fixed before any loss is looked at.

Stated beforehand are the pairs of each series with the baseline and with its partner: Holm's correction over these
holds the chance of any false difference among them at 5%. All other pairs stand apart, corrected over every pair.

The statistic is the difference of log losses of both series' best settings. Where two seeds or more are common to both
at the largest size that both have, it is paired by seed there; where both have two seeds or more and none in common,
Welch's; with one seed and three sizes or more it is paired by size, and speaks of the mean difference over sizes.
Else there is no test, nor where these differences, or losses, are equal to the last digit, as rounded ones are: nothing
is known of their noise then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, assert_never

import numpy as np
import pandas as pd
from scipy import special

from analysis.confidence import CONFIDENCE
from analysis.laws.solver import Array
from analysis.page.numbers import integer, number, share, spread
from analysis.page.page_table import Column, Table
from analysis.questions.compared_pairs import other_pairs, partners, stated_pairs
from analysis.questions.question import Inputs, Question
from analysis.seeds import LEAST_SPREAD

Pairing = Literal["seeds", "none (Welch)", "sizes"]
Outcome = Literal["first lower", "second lower", "tie", "not tested"]
_LEAST_SIZES = 3
_POWER = 0.8
_ASSUMED_SD = 0.0013 / 3.28
"""Standard deviation of log loss between seeds of the public 124M optimization benchmark (modded-nanogpt)."""
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class PairTest:
    """Two series, the first over the second."""

    first: str
    second: str
    num_params: int | None
    """The size that is compared; None for a mean over sizes, and where they share no size."""
    pairing: Pairing | None
    pairs: int
    """Seeds or sizes behind the difference; of an unpaired test the fewer seeds of both."""
    gap: float | None
    """Loss of the first over that of the second, minus one."""
    gap_ci: tuple[float, float] | None
    """95% interval of this pair alone."""
    p: float | None
    adjusted_p: float | None
    """By Holm: of a stated pair over the stated ones that are tested, of another over all that are."""
    outcome: Outcome
    seeds_needed: int | None
    """Seeds of each series that would tell this gap from none; None where it was told, or too many would be needed."""
    stated: bool = True
    """Whether the comparison was stated beforehand: with the baseline or the partner."""


@dataclass(frozen=True)
class PairwiseTests:
    """Every pair of series."""

    level: float
    """Chance of any false difference among the stated pairs, and among all."""
    power: float
    """Chance with which `seeds_needed` seeds would show a true gap of this size."""
    seed_sd: float
    """Standard deviation of log loss between seeds behind `seeds_needed`."""
    seed_sd_is_measured: bool
    tested: int
    """Of the stated pairs."""
    pairs: list[PairTest]
    """The stated ones first."""


def compute(inputs: Inputs) -> PairwiseTests:
    """Tests of the best settings at the budget that sizes are compared at."""
    measured = inputs.optima.seed_sd
    names = inputs.study.series
    if inputs.study.withheld or inputs.optima.reason_against("loss", "num_params"):
        names = []
    stated = stated_pairs(names, inputs.baseline, partners(inputs.best, inputs.options.style))
    others = other_pairs(names, stated)
    sd = measured or _ASSUMED_SD
    losses = _losses(inputs.best)
    found = [_test(losses, first, second) for first, second in [*stated, *others]]
    pairs = corrected(found[: len(stated)], found[len(stated) :], sd)
    return PairwiseTests(
        1 - CONFIDENCE, _POWER, sd, bool(measured), sum(one.stated and one.p is not None for one in pairs), pairs
    )


def corrected(stated: Sequence[PairTest], others: Sequence[PairTest], seed_sd: float) -> list[PairTest]:
    """All pairs, the stated ones corrected among themselves, the others among all."""
    apart = [replace(one, stated=False) for one in holm([*stated, *others])[len(stated) :]]
    families = ((holm(stated), len(stated)), (apart, len(stated) + len(others)))
    return [replace(one, seeds_needed=_seeds_needed(one, seed_sd, of)) for found, of in families for one in found]


def _losses(best: pd.DataFrame) -> dict[str, dict[int, dict[int, float]]]:
    """Losses of each series by size and seed."""
    out: dict[str, dict[int, dict[int, float]]] = {}
    for name, size, by_seed in zip(best["series"], best["num_params"], best["seed_losses"], strict=True):
        out.setdefault(name, {})[int(size)] = dict(by_seed)
    return out


def _test(losses: Mapping[str, Mapping[int, Mapping[int, float]]], first: str, second: str) -> PairTest:
    one, other = losses.get(first, {}), losses.get(second, {})
    sizes = sorted(one.keys() & other.keys())
    if not sizes:
        return PairTest(first, second, None, None, 0, None, None, None, None, "not tested", None)
    return compare_pair(first, second, {n: (one[n], other[n]) for n in sizes})


def compare_pair(
    first: str, second: str, losses: Mapping[int, tuple[Mapping[int, float], Mapping[int, float]]]
) -> PairTest:
    """The test of two series by the rule; `losses` maps sizes to both series' losses by seed. p is not yet adjusted."""
    largest = max(losses)
    one, other = losses[largest]
    common = sorted(one.keys() & other.keys())
    if len(common) > 1:
        differences = np.array([np.log(one[seed] / other[seed]) for seed in common])
        return _of_differences(first, second, largest, "seeds", differences)
    if len(one) > 1 and len(other) > 1:
        return _welch(first, second, largest, np.log([*one.values()]), np.log([*other.values()]))
    over_sizes = np.array([np.log(np.mean([*a.values()]) / np.mean([*b.values()])) for a, b in losses.values()])
    if len(over_sizes) >= _LEAST_SIZES:
        return _of_differences(first, second, None, "sizes", over_sizes)
    gap = float(np.mean([*one.values()]) / np.mean([*other.values()]) - 1)
    return PairTest(first, second, largest, None, 1, gap, None, None, None, "not tested", None)


def _of_differences(first: str, second: str, size: int | None, pairing: Pairing, differences: Array) -> PairTest:
    error = float(differences.std(ddof=1) / np.sqrt(len(differences)))
    return _tested(
        first, second, size, pairing, len(differences), float(differences.mean()), error, len(differences) - 1
    )


def _welch(first: str, second: str, size: int, one: Array, other: Array) -> PairTest:
    parts = np.array([one.var(ddof=1) / len(one), other.var(ddof=1) / len(other)])
    freedom = min(len(one), len(other)) - 1.0
    if parts.sum() > 0:
        freedom = float(parts.sum() ** 2 / (parts**2 / np.array([len(one) - 1, len(other) - 1])).sum())
    mean = float(one.mean() - other.mean())
    fewer = min(len(one), len(other))
    return _tested(first, second, size, "none (Welch)", fewer, mean, float(np.sqrt(parts.sum())), freedom)


def _tested(
    first: str, second: str, size: int | None, pairing: Pairing, pairs: int, mean: float, error: float, freedom: float
) -> PairTest:
    if error <= LEAST_SPREAD:
        return PairTest(
            first, second, size, pairing, pairs, float(np.expm1(mean)), None, None, None, "not tested", None
        )
    p = float(2 * special.stdtr(freedom, -abs(mean) / error))
    reach = float(special.stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * error
    interval = (float(np.expm1(mean - reach)), float(np.expm1(mean + reach)))
    return PairTest(first, second, size, pairing, pairs, float(np.expm1(mean)), interval, p, p, "tie", None)


def holm(pairs: Sequence[PairTest]) -> list[PairTest]:
    """The same pairs with Holm's adjusted p and what may be said; untested pairs take no part."""
    order = sorted((i for i, one in enumerate(pairs) if one.p is not None), key=lambda i: pairs[i].p or 0.0)
    out, highest = list(pairs), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * (pairs[i].p or 0.0)))
        lower: Outcome = "first lower" if (pairs[i].gap or 0.0) < 0 else "second lower"
        out[i] = replace(pairs[i], adjusted_p=highest, outcome=lower if highest < 1 - CONFIDENCE else "tie")
    return out


def _seeds_needed(pair: PairTest, sd: float, pairs: int) -> int | None:
    """Seeds of each series with which a test at Holm's first step finds this gap with `_POWER`.

    A tie on shared seeds is planned for by their own differences, all else for an unpaired test of losses that vary by
    `sd`. A tie at one size needs more seeds than it has.
    """
    if pair.outcome not in ("tie", "not tested") or not pair.gap:
        return None
    gap, tail = abs(float(np.log1p(pair.gap))), (1 - CONFIDENCE) / (2 * pairs)
    n = np.arange(2, _MOST_SEEDS + 1)
    error, apart = sd * np.sqrt(2 / n), _errors_apart(tail, 2)
    if pair.pairing == "seeds" and pair.gap_ci is not None:
        reach = float(np.diff(np.log1p(pair.gap_ci))[0]) / 2
        error = reach / float(special.stdtrit(pair.pairs - 1, 0.5 + CONFIDENCE / 2)) * np.sqrt(pair.pairs / n)
        apart = _errors_apart(tail, 1)
    enough = gap >= apart * error
    if pair.outcome == "tie" and pair.pairing != "sizes":
        enough &= n > pair.pairs
    return int(n[enough.argmax()]) if enough.any() else None


@cache
def _errors_apart(tail: float, samples: int) -> Array:
    """Standard errors that a gap must be wide to be found with `_POWER`, for 2, 3, ... seeds of each sample.

    Kept: all pairs of a report share it, and quantiles of Student's t are slow.
    """
    freedom = samples * (np.arange(2, _MOST_SEEDS + 1) - 1.0)
    return np.asarray(special.stdtrit(freedom, 1 - tail) + special.stdtrit(freedom, _POWER))


def find(result: PairwiseTests, one: str, other: str) -> PairTest | None:
    """The pair of two series, in either order."""
    return next((pair for pair in result.pairs if {pair.first, pair.second} == {one, other}), None)


def section(result: PairwiseTests) -> list[str]:
    """The rule, in words, and which pairs have no test."""
    if not result.pairs:
        return ["There is no pair of series whose losses may be compared."]
    stated = [pair for pair in result.pairs if pair.stated]
    others = [pair for pair in result.pairs if not pair.stated]
    level = number(result.level)
    text = [
        "Stated beforehand: each series against the baseline, and against its partner (data parallel with the same "
        f"inner optimizer, or what --style says): {_counted(len(stated), 'pair')}. The rule: two-sided tests of the "
        "difference of log losses of both series' best settings. At the largest size that both have: paired by seed "
        "(Student's t) where they share two seeds or more, else Welch's where both have two or more. With one seed: "
        "paired by size, over three sizes or more, of the mean difference over sizes."
    ]
    if result.tested:
        text[0] += (
            f" Holm's correction over the {_counted(result.tested, 'stated pair')} tested; level {level}. A pair with "
            f"an adjusted p of {level} or more is a tie: not told apart, which does not say that they are equal. "
            "Intervals are those of one pair alone."
        )
    all_tested = sum(pair.p is not None for pair in result.pairs)
    if others and all_tested:
        text.append(
            f"The other {_counted(len(others), 'pair')} were not stated beforehand: Holm's correction is over all "
            f"{_counted(all_tested, 'pair')} tested, and they have a table of their own."
        )
    untested = sum(pair.p is None and pair.gap is not None for pair in stated)
    if untested:
        text.append(
            f"{integer(untested)} of {_counted(len(stated), 'stated pair')} cannot be tested: one "
            "seed, and too few sizes, or differences that are equal to the last digit, which tell nothing of noise."
        )
    if any(pair.seeds_needed is not None for pair in result.pairs):
        sd = "as measured here" if result.seed_sd_is_measured else "as in the public 124M benchmark, for want of own"
        text.append(
            "Seeds needed, of ties and of what was not tested, are those of each series that would show the gap seen "
            f"now with {share(result.power)} power: of a tie by shared seeds as their differences vary, else at losses "
            f"that vary by {spread(result.seed_sd)} between seeds, {sd}."
        )
    apart = sum(pair.gap is None for pair in stated)
    if apart:
        text.append(f"{integer(apart)} of {_counted(len(stated), 'stated pair')} share no size, so have no gap.")
    return text


def _counted(number_of: int, what: str) -> str:
    return f"{integer(number_of)} {what}{'s' if number_of != 1 else ''}"


def rows(result: PairwiseTests) -> list[Table]:
    """One row a pair: the stated ones, and the others."""
    caption = "loss of the first over that of the second, minus one"
    tables = [
        _table("pairwise_tests", f"Comparisons stated beforehand: {caption}", [p for p in result.pairs if p.stated]),
        _table("other_pairs", f"All other pairs: {caption}", [p for p in result.pairs if not p.stated]),
    ]
    return [table for table in tables if table.rows]


def _table(name: str, caption: str, pairs: list[PairTest]) -> Table:
    return Table(
        name,
        caption,
        [
            Column("first"), Column("second"), Column("size", "count", "parameters"), Column("paired by"),
            Column("pairs", "integer"), Column("gap", "percent"), Column("gap 95% interval", "percent", joint=" "),
            Column("p", "number"), Column("p by Holm", "number"), Column("outcome"), Column("seeds needed", "integer"),
        ],
        [
            [
                one.first, one.second, one.num_params, one.pairing or "–", one.pairs, one.gap, one.gap_ci, one.p,
                one.adjusted_p, _in_words(one), one.seeds_needed,
            ]
            for one in pairs
        ],
    )  # fmt: skip


def _in_words(pair: PairTest) -> str:
    match pair.outcome:
        case "first lower":
            return f"{pair.first} is lower"
        case "second lower":
            return f"{pair.second} is lower"
        case "not tested" if pair.gap is None:
            return "not tested: no size in common"
        case "tie" | "not tested":
            return pair.outcome
        case _:
            assert_never(pair.outcome)


# No findings: the ranking in the verdict says what the test of its first two gives.
QUESTION: Question[Any] = Question(
    name="pairwise_tests",
    title="Which series differ",
    result=PairwiseTests,
    compute=compute,
    section=section,
    rows=rows,
)
