"""Fits against planted laws and exact optima."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.special import logsumexp

from analysis.laws.fit import NotIdentified
from analysis.laws.power_law import fit_chinchilla, fit_critical_batch, fit_loss_compute, fit_power_law
from analysis.laws.solver import Array

FLOPS = np.geomspace(1e17, 1e21, 7)


# Planted truths


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 2.0), st.floats(-1.0, 1.0))
def test_a_power_law_without_noise_is_recovered(amplitude: float, exponent: float) -> None:
    x = np.geomspace(1e6, 1e10, 6)
    fit = fit_power_law(x, amplitude * x**exponent, bootstrap=0)
    assert fit.value("A") == pytest.approx(amplitude, rel=1e-6)
    assert fit.value("alpha") == pytest.approx(exponent, abs=1e-6)


def test_loss_against_compute_without_noise_is_recovered() -> None:
    loss = 1.7 + 4e3 * FLOPS**-0.19
    fit = fit_loss_compute(FLOPS, loss, bootstrap=0)
    assert [fit.value(n) for n in ("E", "A", "alpha")] == pytest.approx([1.7, 4e3, 0.19], rel=1e-6)


def test_the_law_of_size_and_data_without_noise_is_recovered() -> None:
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 6)))
    fit = fit_chinchilla(n, d, 1.69 + 406.4 * n**-0.34 + 410.7 * d**-0.28, bootstrap=0)
    found = [fit.value(name) for name in ("E", "A", "B", "alpha", "beta")]
    assert found == pytest.approx([1.69, 406.4, 410.7, 0.34, 0.28], rel=1e-6)


def test_units_and_the_order_of_rows_do_not_matter() -> None:
    noise = np.random.default_rng(0).normal(size=7)
    loss = (1.7 + 4e3 * FLOPS**-0.19) * np.exp(0.002 * noise)
    order = np.random.default_rng(1).permutation(7)
    first = fit_loss_compute(FLOPS, loss, bootstrap=0)
    shuffled = fit_loss_compute(FLOPS[order] / 1e18, loss[order], bootstrap=0)
    for name in ("E", "alpha"):
        assert shuffled.value(name) == pytest.approx(first.value(name), rel=1e-7)
    assert shuffled.objective == pytest.approx(first.objective, rel=1e-9)


def best_of_scipy(terms: Callable[[Array], Array], starts: list[list[float]], loss: Array, delta: float) -> float:
    """The smallest sum of Huber losses that scipy finds, polished: exponents of the terms -> (terms, n)."""

    def residual(theta: Array) -> Array:
        return np.asarray(logsumexp(terms(theta), axis=0) - np.log(loss))

    lowest = np.inf
    for start in starts:
        # scipy's huber loss with f_scale=delta: cost = delta^2/2 * sum(rho((r/delta)^2)), the sum of Huber losses.
        found = least_squares(residual, start, loss="huber", f_scale=delta, xtol=1e-15, ftol=1e-15, gtol=1e-15)
        lowest = min(lowest, found.cost)
    return float(lowest)


@pytest.mark.parametrize("seed", range(6))
def test_loss_against_compute_has_the_objective_of_scipys_best(seed: int) -> None:
    generator = np.random.default_rng(seed)
    loss = (1.7 + 4e3 * FLOPS**-0.19) * np.exp(0.003 * generator.standard_t(2, size=7))
    delta, log_c = (1e-3, 1e-2, 1e-4)[seed % 3], np.log(FLOPS) - np.log(FLOPS).mean()
    best = best_of_scipy(
        lambda theta: np.stack([np.full(7, theta[0]), theta[1] - theta[2] * log_c]),
        [[np.log(e), np.log(2.5 - e), 0.2] for e in (0.1, 0.5, 1.0, 1.5, 1.7, 1.9)],
        loss,
        delta,
    )
    fit = fit_loss_compute(FLOPS, loss, delta=delta, bootstrap=0)
    assert fit.diagnostics.converged
    assert fit.objective <= best * (1 + 1e-9)


@pytest.mark.parametrize(("seed", "num_points", "outliers"), [(0, 245, 5), (1, 60, 3), (2, 20, 1), (3, 12, 0)])
def test_size_and_data_have_the_objective_of_scipys_best(seed: int, num_points: int, outliers: int) -> None:
    """Points along lines of equal compute with heavy tails and rows that are plainly wrong."""
    generator = np.random.default_rng(seed)
    n = np.exp(generator.uniform(np.log(4e7), np.log(1e10), num_points))
    d = generator.choice(np.geomspace(6e18, 3e21, 9), num_points) / (6 * n)
    loss = (1.82 + 480 * n**-0.35 + 2140 * d**-0.37) * np.exp(0.004 * generator.standard_t(2, size=num_points))
    loss[:outliers] *= 1.3
    log_n, log_d = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean()
    best = best_of_scipy(
        lambda t: np.stack([np.full(num_points, t[0]), t[1] - t[2] * log_n, t[3] - t[4] * log_d]),
        [[np.log(e), -1.0, a, -1.0, b] for e in (0.5, 1.8) for a in (0.2, 0.5) for b in (0.2, 0.5)],
        loss,
        1e-3,
    )
    fit = fit_chinchilla(n, d, loss, bootstrap=0)
    assert fit.diagnostics.converged
    assert fit.diagnostics.gradient < 1e-6
    assert fit.objective <= best * (1 + 1e-9)


def test_an_irreducible_loss_of_zero_is_named_as_an_edge() -> None:
    bent_down = np.exp(1.0 - 0.05 * (np.log(FLOPS) - 39) - 0.004 * (np.log(FLOPS) - 39) ** 2)
    fit = fit_loss_compute(FLOPS, bent_down, bootstrap=50)
    line = fit_power_law(FLOPS, bent_down, bootstrap=0)
    assert fit.value("E") == 0.0
    assert fit.diagnostics.at_bounds == ("E",)
    assert fit.objective == pytest.approx(line.objective, rel=1e-9)
    assert any("zero" in warning for warning in fit.warnings)


@pytest.mark.parametrize("seed", [97, 174, *range(8)])
def test_a_law_with_an_irreducible_loss_is_never_worse(seed: int) -> None:
    """The one holds the other as its limit, which its logarithm never reaches."""
    generator = np.random.default_rng(seed)
    num_points = int(generator.choice([5, 6, 8, 12]))
    flops = np.exp(np.sort(generator.uniform(np.log(1e17), np.log(1e22), num_points)))
    noise = generator.standard_t(1.5, num_points) * 0.02
    loss = (0.3 + 2 * (flops / 1e19) ** -0.1) * np.exp(noise)
    with_floor = fit_loss_compute(flops, loss, bootstrap=0)
    without = fit_power_law(flops, loss, bootstrap=0)
    assert with_floor.objective <= without.objective * (1 + 1e-9)
    assert with_floor.diagnostics.converged


def test_each_group_may_have_an_irreducible_loss_of_its_own() -> None:
    flops, groups = np.tile(FLOPS, 2), ["one"] * 7 + ["two"] * 7
    loss = np.concatenate([1.7 + 4e3 * FLOPS**-0.19, 1.5 + 3e3 * FLOPS**-0.18])
    fit = fit_loss_compute(flops, loss, groups=groups, shared_irreducible_loss=False, bootstrap=0)
    names = ("E[one]", "E[two]", "A[one]", "A[two]", "alpha[one]", "alpha[two]")
    assert [fit.value(name) for name in names] == pytest.approx([1.7, 1.5, 4e3, 3e3, 0.19, 0.18], rel=1e-6)


@pytest.mark.thorough
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    x, covered = np.geomspace(1e6, 1e9, 12), 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(size=12)
        fit = fit_power_law(x, 3 * x**0.5 * np.exp(0.05 * noise), bootstrap=200, seed=seed)
        low, high = fit.parameters["alpha"].ci or (np.nan, np.nan)
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 200 <= 0.99


# Refusals


def test_size_and_data_that_rise_together_are_refused() -> None:
    n = np.geomspace(1e7, 1e10, 8)
    with pytest.raises(NotIdentified, match="rise together"):
        fit_chinchilla(n, 20 * n, 1.7 + n**-0.3, bootstrap=0)


def test_exponents_that_may_be_anything_are_refused() -> None:
    tokens, noise = [1e9, 1.6e9, 2.2e9], [0.4, -0.5, 0.3]
    with pytest.raises(NotIdentified, match=r"wider than 2|beyond 2"):
        fit_critical_batch(tokens, [1e6 * np.exp(z) for z in noise], bootstrap=20)
    with pytest.raises(NotIdentified, match="beyond 2"):
        fit_critical_batch(np.geomspace(1e9, 1e10, 4), np.geomspace(1e5, 1e9, 4), bootstrap=0)
    with pytest.raises(NotIdentified, match=r"factor of 1\.1 alone"):
        fit_loss_compute(np.geomspace(1e18, 1.1e18, 6), np.geomspace(3, 2.9, 6), bootstrap=0)
    loose = fit_power_law([1.0, 2.0, 4.0], [1.0, 3.0, 3.5], bootstrap=20)
    assert loose.parameters["alpha"].ci is not None


def test_an_interval_that_spans_decades_is_left_out_and_warned_of() -> None:
    x = np.geomspace(1e20, 1e21, 5)
    fit = fit_critical_batch(x, 1e6 * (x / 1e20) ** 0.5 * np.exp([0.1, -0.1, 0.1, -0.1, 0.1]), bootstrap=20)
    assert fit.parameters["A"].ci is None
    assert any("spans more than 6 decades" in warning for warning in fit.warnings)
    assert fit.parameters["alpha"].ci is not None


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([], [], "0 point"),
        ([1.0], [1.0], "1 point"),
        ([1.0, 2.0, 3.0], [1.0, float("nan"), 2.0], "row 2"),
        ([1.0, 2.0, 3.0], [1.0, -1.0, 2.0], "positive"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "long"),
        ([1.0, "many", 3.0], [1.0, 2.0, 3.0], "numbers"),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], "single value"),
    ],
)
def test_bad_input_gets_a_clear_answer(x: list[float], y: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_power_law(x, y)
