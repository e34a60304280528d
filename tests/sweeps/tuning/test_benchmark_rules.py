"""The 124M benchmark's two formulas as rules of `decide`: what they say, and how often they are wrong."""

import math
import os
import random
from collections import Counter

import pytest

from sweeps.engine.tuning.benchmark_rules import (
    SIGMA,
    BenchmarkPair,
    BenchmarkResult,
    BenchmarkTarget,
    Entry,
    judge_pair,
    judge_target,
)
from sweeps.engine.tuning.sequential import Outcome

SEQUENCES = int(os.environ.get("MULOCO_SEQUENCES", "100"))


def entry(mean: float, num: int, seed: int = 0, sd: float = SIGMA, steps: float = 3250.0) -> Entry:
    """Runs of `steps` steps of 1,000 tokens."""
    draw = random.Random(f"{mean} {seed} {steps}")
    return Entry({n: draw.gauss(mean, sd) for n in range(num)}, 1000 * steps, 1000.0)


def flat(mean: float, num: int, steps: float = 3250.0) -> Entry:
    return entry(mean, num, sd=0.0, steps=steps)


def test_formulas_are_the_benchmarks() -> None:
    pair = judge_pair(flat(3.2770, 4, 3210), flat(3.2785, 4), BenchmarkPair())
    assert pair.margin == pytest.approx((0.0015 + 40 / 100 * 0.0045) / math.sqrt(1 / 4 + 1 / 4))
    assert pair.steps_saved == 40
    assert pair.outcome is Outcome.FIRST
    target = judge_target(flat(3.2785, 4), BenchmarkTarget(3.28))
    assert target.margin == pytest.approx(0.0015 * math.sqrt(4))
    assert target.outcome is Outcome.OPEN
    # More seeds of the same mean make the same difference one that counts.
    assert judge_target(flat(3.2785, 10), BenchmarkTarget(3.28)).outcome is Outcome.FIRST
    assert judge_target(flat(3.2830, 4), BenchmarkTarget(3.28)).outcome is Outcome.SECOND


def test_fewer_than_four_seeds_decide_nothing() -> None:
    assert judge_pair(flat(1.0, 3), flat(2.0, 9), BenchmarkPair()) == BenchmarkResult(Outcome.OPEN, 3)
    assert judge_target(flat(1.0, 3), BenchmarkTarget(3.28)).outcome is Outcome.OPEN


def test_the_first_look_that_decides_counts() -> None:
    early = {**dict.fromkeys(range(4), 3.27), **dict.fromkeys(range(4, 20), 3.40)}
    result = judge_target(Entry(early, 1.0, 1.0), BenchmarkTarget(3.28))
    assert (result.outcome, result.num_seeds) == (Outcome.FIRST, 4)


@pytest.mark.parametrize("mean", [3.28, 3.274])
def test_error_rates_are_as_documented(mean: float) -> None:
    """Docs say: of equal pairs about one in a hundred is told apart, looks every two seeds counted."""
    pairs: Counter[Outcome] = Counter()
    targets: Counter[Outcome] = Counter()
    for seed in range(SEQUENCES):
        ours = entry(mean, 20, seed)
        theirs = Entry(entry(3.28, 20, seed + 10**6).losses, ours.budget_tokens, ours.batch_tokens)
        pairs[judge_pair(ours, theirs, BenchmarkPair()).outcome] += 1
        targets[judge_target(ours, BenchmarkTarget(3.28)).outcome] += 1
    print(f"mean {mean}: pairs {pairs}, targets {targets}")
    for found in (pairs, targets):
        assert found[Outcome.SECOND] <= 0.03 * SEQUENCES
        assert found[Outcome.FIRST] <= 0.03 * SEQUENCES if mean == 3.28 else found[Outcome.FIRST] >= 0.95 * SEQUENCES


def test_seeds_that_spread_wider_than_assumed_are_named() -> None:
    wide = judge_pair(entry(3.2, 20, 1, sd=0.01), entry(3.3, 20, 2, sd=0.01), BenchmarkPair())
    assert wide.spreads_wider
    assert "its error rate does not hold" in wide.to_text("MuLoCo", "DDP-Muon")
    assert not judge_pair(entry(3.2, 20, 1), entry(3.3, 20, 2), BenchmarkPair()).spreads_wider
