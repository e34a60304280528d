"""The rule for pairs of series: how they are paired, Holm's correction, and what one seed allows."""

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binom

from analysis.questions.compared_pairs import other_pairs, stated_pairs
from analysis.questions.pairwise_tests import (
    Outcome,
    PairTest,
    PairwiseTests,
    compare_pair,
    corrected,
    holm,
    rows,
    section,
)
from analysis.questions.pairwise_tests import _seeds_needed as seeds_needed
from analysis.report.content import json_values
from analysis.report.verdict import _headline, _ranking
from analysis.seeds import compare_seeds

SEEDED = int(os.environ.get("MULOCO_STUDIES", "20"))


def by_seed(losses: np.ndarray, first: int = 0) -> dict[int, float]:
    return {first + i: float(loss) for i, loss in enumerate(losses)}


def test_shared_seeds_are_paired_and_others_are_not() -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(size=6) * 0.05
    one = np.exp(1 + shared + 0.001 * generator.normal(size=6))
    other = np.exp(1.002 + shared + 0.001 * generator.normal(size=6))
    paired = compare_pair("a", "b", {10: (by_seed(one), by_seed(other))})
    assert (paired.pairing, paired.pairs, paired.num_params) == ("seeds", 6, 10)
    assert paired.p == pytest.approx(stats.ttest_rel(np.log(one), np.log(other)).pvalue)
    apart = compare_pair("a", "b", {10: (by_seed(one), by_seed(other[:4], 100))})
    assert (apart.pairing, apart.pairs) == ("none (Welch)", 4)
    assert apart.p == pytest.approx(stats.ttest_ind(np.log(one), np.log(other[:4]), equal_var=False).pvalue)


def test_one_seed_is_paired_by_size_or_not_tested_at_all() -> None:
    losses = {n: ({0: 3.0 - n / 100}, {0: (3.0 - n / 100) * gap}) for n, gap in ((1, 1.01), (2, 1.012), (3, 1.011))}
    sizes = compare_pair("a", "b", losses)
    assert (sizes.pairing, sizes.pairs, sizes.num_params) == ("sizes", 3, None)
    logs = -np.log([1.01, 1.012, 1.011])
    assert sizes.p == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)
    few = compare_pair("a", "b", {n: losses[n] for n in (1, 2)})
    assert (few.outcome, few.p, few.num_params) == ("not tested", None, 2)
    assert few.gap == pytest.approx(1 / 1.012 - 1)


@pytest.mark.parametrize("second", [{0: 3.20, 1: 3.20}, {2: 3.20, 3: 3.20}], ids=["paired", "Welch"])
def test_losses_that_agree_to_the_last_digit_test_nothing(second: dict[int, float]) -> None:
    first = {0: 3.21, 1: 3.21}
    (tested,) = corrected([compare_pair("A", "B", {1000: (first, second)})], [], 0.01)
    assert (tested.outcome, tested.p, tested.gap_ci) == ("not tested", None, None)
    assert tested.gap == pytest.approx(3.21 / 3.20 - 1)
    assert compare_seeds(first, second).distinct is None


def test_the_seeds_that_are_needed_would_suffice() -> None:
    """By simulation: with so many seeds the test finds the gap as often as it says, with two fewer it does not."""
    pair = PairTest("a", "b", 10, None, 1, 0.002, None, None, None, "not tested", None)
    needed = seeds_needed(pair, 0.001, 3)
    assert needed is not None
    generator, found = np.random.default_rng(0), {}
    for n in (needed, needed - 2):
        one, other = generator.normal(np.log(1.002), 0.001, (4000, n)), generator.normal(0, 0.001, (4000, n))
        found[n] = np.mean(stats.ttest_ind(one, other, axis=1).pvalue < 0.05 / 3)
    assert found[needed] > 0.78
    assert found[needed - 2] < 0.8
    assert seeds_needed(PairTest("a", "b", 10, None, 1, 1e-9, None, None, None, "not tested", None), 0.001, 3) is None


def test_a_tie_needs_more_seeds_than_it_has() -> None:
    """By simulation: with so many seeds in common, whose differences vary as these, the gap is found as often."""
    differences = np.log(1.001) + 0.001 * np.array([-1.0, 1.0])
    tie = compare_pair("a", "b", {10: (by_seed(np.exp(differences)), by_seed(np.ones(2)))})
    (tie,) = corrected([tie], [], 0.5)
    assert (tie.outcome, tie.pairing) == ("tie", "seeds")
    needed = tie.seeds_needed
    assert needed is not None
    assert needed > 2
    draws = np.random.default_rng(0).normal(np.log(1.001), differences.std(ddof=1), (4000, needed))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) > 0.78
    apart = PairTest("a", "b", 10, "none (Welch)", 5, 0.01, (-0.1, 0.1), 0.9, 0.9, "tie", None)
    assert seeds_needed(apart, 1e-6, 1) == 6
    assert seeds_needed(replace(apart, outcome="second lower"), 1e-6, 1) is None


def test_pairs_without_a_size_in_common_say_so() -> None:
    pair = PairTest("a", "b", None, None, 0, None, None, None, None, "not tested", None)
    result = PairwiseTests(0.05, 0.8, 0.0004, False, 0, [pair])
    said = " ".join(section(result))
    assert "1 of 1 stated pair share no size" in said
    assert "one seed, and too few sizes" not in said
    assert "not tested: no size in common" in rows(result)[0].rows[0]


def test_holm_steps_down_and_never_back() -> None:
    def pair(p: float | None) -> PairTest:
        return PairTest("a", "b", 10, "seeds", 3, -0.01, None, p, p, "tie" if p is not None else "not tested", None)

    found = holm([pair(0.01), pair(None), pair(0.04), pair(0.03)])
    assert [one.adjusted_p for one in found] == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert [one.outcome for one in found] == ["first lower", "not tested", "tie", "tie"]


def test_the_page_says_what_cannot_be_tested() -> None:
    pair = PairTest("a", "b", 10, None, 1, 0.002, None, None, None, "not tested", 7)
    said = " ".join(section(PairwiseTests(0.05, 0.8, 0.0004, False, 0, [pair])))
    assert "Holm" not in said
    assert "1 of 1 stated pair cannot be tested: one seed" in said
    assert "for want of own" in said


def test_stated_pairs_are_corrected_among_themselves_and_stand_first() -> None:
    names = ["a", "b", "c", "d"]
    stated = stated_pairs(names, "b", {"c": "b", "d": "a", "a": "elsewhere"})
    assert stated == [("a", "b"), ("c", "b"), ("d", "b"), ("d", "a")]
    assert other_pairs(names, stated) == [("a", "c"), ("c", "d")]

    def pair(one: str, other: str, p: float) -> PairTest:
        return PairTest(one, other, 10, "seeds", 3, -0.01, None, p, p, "tie", None)

    found = corrected([pair(*one, 0.01) for one in stated], [pair("a", "c", 0.01), pair("c", "d", 0.4)], 0.001)
    assert [one.adjusted_p for one in found] == pytest.approx([0.04] * 4 + [0.06, 0.4])
    assert [one.outcome for one in found] == ["first lower"] * 4 + ["tie"] * 2
    result = PairwiseTests(0.05, 0.8, 0.0004, False, 4, found)
    shown, folded = rows(result)
    assert [row[:2] for row in shown.rows] == [list(one) for one in stated]
    assert (folded.name, len(folded.rows)) == ("other_pairs", 2)
    said = " ".join(section(result))
    assert "Holm's correction over the 4 stated pairs tested" in said
    assert "is a tie: not told apart" in said
    assert "The other 2 pairs were not stated beforehand: Holm's correction is over all 6 pairs tested" in said


def test_no_difference_is_found_in_one_study_of_twenty() -> None:
    """Five equal series in `SEEDED` studies: the chance of any false difference is 5% over all ten pairs."""
    false, held = 0, []
    for study in range(10 * SEEDED):
        generator = np.random.default_rng(study)
        losses = np.exp(generator.normal(size=(5, 4)) * 0.001)
        pairs = [
            compare_pair(str(i), str(j), {10: (by_seed(losses[i], 10 * i), by_seed(losses[j], 10 * j))})
            for i in range(5)
            for j in range(i)
        ]
        false += any(one.outcome != "tie" for one in holm(pairs))
        ci = pairs[0].gap_ci
        assert ci is not None
        held.append(ci[0] <= 0 <= ci[1])
    assert false <= binom.ppf(0.999, 10 * SEEDED, 0.05)
    assert 0.90 <= np.mean(held) <= 0.99


@pytest.mark.parametrize(
    ("relative", "se", "paired", "outcome", "said"),
    [
        (0.02, 0.001, 3, "first lower", "B 2.00% ± 0.10% more: established."),
        (0.02, 0.001, 3, "tie", "B 2.00% ± 0.10% more: not established."),
        (0.02, 0.001, 3, "second lower", "B 2.00% ± 0.10% more: not established."),
        (-0.0035, 0.0002, 3, "second lower", "on the 3 seeds that both have B is 0.35% ± 0.02% lower: that is est"),
        (-0.0035, 0.0002, 3, "tie", "B is 0.35% ± 0.02% lower: which is lower is not established"),
        (-0.0035, None, 1, "not tested", "on the seed that both have B is 0.35% lower: which is lower is not"),
    ],
)
def test_the_first_line_says_more_of_what_is_more(
    relative: float, se: float | None, paired: int, outcome: Outcome, said: str
) -> None:
    p = None if outcome == "not tested" else 0.01
    pair = PairTest("A", "B", 10, "seeds", paired, -relative, None, p, p, outcome, None)
    gap = {"relative": relative, "se": se, "paired_seeds": paired, "distinct": True}
    report: dict[str, Any] = {
        "audit": {"withheld": None, "unusable": {}, "seed_sd": 0.001},
        "ranking": {"num_params": 10, "series": ["A", "B"], "gap": gap},
        "best": [{"series": name, "num_params": 10, "loss": loss} for name, loss in (("A", 2.9), ("B", 2.91))],
        "questions": {"pairwise_tests": json_values(PairwiseTests(0.05, 0.8, 0.001, True, 1, [pair]))},
    }
    verdict = [_headline(report), *_ranking(report)]
    assert said in verdict[0]
    assert all("-0" not in line for line in verdict)
    assert ("by means" in verdict[1]) == (relative < 0)
