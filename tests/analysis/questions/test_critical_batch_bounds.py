"""Bounds of the 1% rule by seeds: never further than the data, and as sure as they say."""

import numpy as np
import pandas as pd
import pytest

from analysis.optima import Optima
from analysis.questions.critical_batch_size import CriticalBatch, find_critical_batches

ABOVE = np.array([0.004, 0.0, 0.007, 0.013, 0.03])
"""True log losses over the best one, by growing batch: the third is the largest within 1%."""
BATCHES = 2 ** np.arange(6, 11)


def point_of(choosing: np.ndarray, fresh: np.ndarray, unbiased: bool = True) -> CriticalBatch:
    """`choosing`: log losses by batch, as settings were chosen by; `fresh`: at other seeds, a row a batch."""
    rows = [
        {
            "series": "DDP-AdamW", "num_params": 29120, "tokens_per_parameter": 20.0, "num_tokens": 6e5,
            "global_batch_tokens": int(batch), "num_steps": 1000, "selection_loss": 2 * np.exp(chosen), "edges": [],
            "seeds": len(losses), "seed_losses": dict(enumerate(2 * np.exp(losses), 1)), "unbiased": unbiased,
        }
        for batch, chosen, losses in zip(BATCHES, choosing, fresh, strict=True)
    ]  # fmt: skip
    points = pd.DataFrame(rows)
    (found,) = find_critical_batches(Optima(points, points, points.iloc[[0]], None, 0), 20.0)
    return found


def test_with_little_noise_the_bounds_are_the_truth() -> None:
    noise = np.random.default_rng(0).normal(size=(5, 8)) * 1e-4
    found = point_of(ABOVE, ABOVE[:, None] + noise)
    assert (found.at_least, found.below, found.paired_seeds) == (256, 512, 8)


def test_noise_that_batches_share_cancels() -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(size=8) * 0.1
    found = point_of(ABOVE, ABOVE[:, None] + shared + generator.normal(size=(5, 8)) * 1e-4)
    assert (found.at_least, found.below) == (256, 512)


def test_seeds_that_chose_bound_nothing() -> None:
    found = point_of(ABOVE, ABOVE[:, None] + np.zeros(8), unbiased=False)
    assert (found.at_least, found.below, found.paired_seeds) == (None, None, 0)


def test_losses_that_agree_to_the_last_digit_bound_nothing() -> None:
    found = point_of(ABOVE, ABOVE[:, None] + np.zeros(8))
    assert (found.at_least, found.below, found.paired_seeds) == (None, None, 8)


def test_one_seed_bounds_nothing() -> None:
    found = point_of(ABOVE, ABOVE[:, None] + np.zeros(1))
    assert (found.at_least, found.below, found.paired_seeds) == (None, None, 1)


@pytest.mark.parametrize("noise", [0.002, 0.008])
def test_each_bound_holds_as_often_as_it_says(noise: float) -> None:
    generator = np.random.default_rng(1)
    wrong, given, draws = np.zeros(2), np.zeros(2), 400
    for _ in range(draws):
        found = point_of(
            ABOVE + noise * generator.normal(size=5), ABOVE[:, None] + noise * generator.normal(size=(5, 8))
        )
        wrong += [(found.at_least or 0) > 256, (found.below or 512) < 512]
        given += [found.at_least is not None, found.below is not None]
    # Three standard errors of a share of .05 beyond it.
    assert (wrong / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)).all()
    assert (given / draws > 0.5).any()
