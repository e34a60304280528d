"""Fits against planted laws, exact optima and what was published (tests/analysis/data, each file with its source)."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from analysis.iso_loss import ratio_at
from analysis.power_law import CannotSay, fit_chinchilla, fit_critical_batch, fit_loss_compute, fit_power_law

DATA = Path(__file__).parent / "data"
FLOPS = np.geomspace(1e17, 1e21, 7)


def published(name: str) -> pd.DataFrame:
    return pd.read_csv(DATA / name, comment="#")


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


def test_the_objective_is_that_of_scipys_best_of_many_starts() -> None:
    generator = np.random.default_rng(3)
    loss = (1.7 + 4e3 * FLOPS**-0.19) * np.exp(0.003 * generator.standard_t(2, size=7))
    delta, centre = 1e-3, np.log(FLOPS).mean()

    def residual(theta: np.ndarray) -> np.ndarray:
        model = np.logaddexp(theta[0], theta[1] - theta[2] * (np.log(FLOPS) - centre))
        return model - np.log(loss)

    # scipy's huber loss with f_scale=delta: cost = delta^2/2 * sum(rho((r/delta)^2)), the sum of Huber losses.
    best = min(
        least_squares(residual, [np.log(e), np.log(2.5 - e), 0.2], loss="huber", f_scale=delta, xtol=1e-15, ftol=1e-15,
                      gtol=1e-15, max_nfev=5000).cost
        for e in (0.5, 1.0, 1.5, 1.7, 1.9)
    )  # fmt: skip
    assert fit_loss_compute(FLOPS, loss, delta=delta, bootstrap=0).objective <= best * (1 + 1e-9)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    x, covered = np.geomspace(1e6, 1e9, 12), 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(size=12)
        fit = fit_power_law(x, 3 * x**0.5 * np.exp(0.05 * noise), bootstrap=200, seed=seed)
        low, high = fit.parameters["alpha"].ci or (np.nan, np.nan)
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 200 <= 0.99


# What was published


def test_exponents_of_the_published_critical_batches() -> None:
    """Legend of the published figure, whose fits used Huber 1e-3; token counts are read off the figure to 1%."""
    table = published("muloco_cbs_points_and_fits.csv")
    columns = [name for name in table.columns if name.startswith("D=")]
    tokens = [float(name[2:]) for name in columns]
    for row in table.to_dict("records"):
        fit = fit_critical_batch(tokens, [float(row[name]) for name in columns], bootstrap=0)
        assert fit.value("alpha") == pytest.approx(row["alpha_legend"], abs=1.5e-3)


def test_shared_irreducible_loss_and_compute_ratios_of_the_published_table() -> None:
    table = published("muloco_final_eval_loss.csv")
    used = table[(table["K"] <= 1) & (table["N_label"] != "15B")]
    flops = 6 * used["N_exact"] * used["tokens_readme"]
    fit = fit_loss_compute(flops, used["loss"], groups=used["method"].tolist(), bootstrap=0)
    assert fit.value("E") == pytest.approx(1.667, abs=0.003)
    values = {name: np.array([estimate.value]) for name, estimate in fit.parameters.items()}
    expected = {"DP_Muon": 1.307, "DiLoCo": 1.204, "MuLoCo": 1.341}
    for method, ratio in expected.items():
        assert ratio_at(values, "DP_AdamW", method, 1.26e21)[0] == pytest.approx(ratio, abs=0.005)
    plotted = published("muloco_iso_loss_ratios_from_plots.csv")
    for method in expected:
        curve = plotted[(plotted["quantity"] == "compute_ratio") & (plotted["method"].str.startswith(method))]
        ours = [ratio_at(values, "DP_AdamW", method, c)[0] for c in curve["flops_C"]]
        assert ours == pytest.approx(curve["ratio_vs_DP_AdamW"].tolist(), rel=0.01)


# Refusals


def test_size_and_data_that_rise_together_are_refused() -> None:
    n = np.geomspace(1e7, 1e10, 8)
    with pytest.raises(CannotSay, match="rise together"):
        fit_chinchilla(n, 20 * n, 1.7 + n**-0.3, bootstrap=0)


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
