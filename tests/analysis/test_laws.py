"""Planted truths through each analysis: critical batch, time, wall clock, size and data, sensitivity, coverage."""

import math
import os
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from analysis.laws.fit import NotIdentified
from analysis.laws.power_law import fit_chinchilla, fit_critical_batch, fit_loss_compute
from analysis.laws.solver import Array
from analysis.optima import Optima
from analysis.questions.critical_batch_joint import fit_joint
from analysis.questions.critical_batch_size import find_critical_batches, fit_laws, value_of
from analysis.questions.iso_loss import compute_iso_loss, interval_of, ratio_at
from analysis.questions.isoflop import find_budgets, fit_size_and_data, trunks_of
from analysis.questions.sensitivity import loss_variants
from analysis.questions.time_ratio import at_baselines_flops, compute_time_ratios
from analysis.questions.wall_clock import (
    GIGABIT,
    Assumptions,
    Measured,
    Training,
    charles_seconds,
    idealised_seconds,
    measured_seconds,
)

STUDIES = int(os.environ.get("MULOCO_STUDIES", "100"))
"""`make soak` takes 200."""
SIZES = np.geomspace(1e7, 1e9, 5)
BATCHES = 2.0 ** np.arange(12, 24)


def curves(
    exponent: float,
    series: str = "DDP-AdamW",
    sizes: Array = SIZES,
    batches: Array = BATCHES,
    budgets: tuple[float, ...] = (20.0, 20 / 1.2),
    noise: float = 0.0,
    best_batch_at: float = 1 / 8,
) -> Optima:
    """Best losses over batches of L = 1.7 + 400 N^-.34 + 900 D_eff^-.3, D_eff = D / (1 + B/B_c), B_c = c D^exponent.

    Below `best_batch_at` of B_c a batch loses a little as well.
    """
    generator = np.random.default_rng(0)
    rows = []
    for n in sizes:
        for budget in budgets:
            d = budget * n
            critical = 2e6 * (d / 2e9) ** exponent
            for b in batches:
                small = max(0.0, math.log2(critical * best_batch_at / b))
                loss = 1.7 + 400 * n**-0.34 + 900 * (d / (1 + b / critical)) ** -0.3
                loss *= (1 + 0.003 * small**2) * math.exp(noise * generator.normal())
                rows.append(
                    {
                        "series": series, "num_params": int(n), "tokens_per_parameter": budget, "num_tokens": d,
                        "global_batch_tokens": int(b), "num_steps": int(d / b), "loss": loss, "flops": 6 * n * d,
                        "edges": [], "seeds": 2, "selection_seeds": 2, "seed_losses": {}, "unbiased": False,
                    }
                )  # fmt: skip
    points = pd.DataFrame(rows)
    points["selection_loss"] = points["loss"]
    keys = ["series", "num_params", "tokens_per_parameter"]
    best = points.loc[points.groupby(keys)["loss"].idxmin()].reset_index(drop=True)
    return Optima(points, points, best, noise or None, 1)


@pytest.mark.parametrize("exponent", [0.46, 0.92])
def test_the_joint_model_recovers_a_planted_exponent(exponent: float) -> None:
    law = fit_joint(curves(exponent, budgets=(10.0, 20.0, 40.0)).points, "DDP-AdamW", 1e-3)
    assert law.exponent.value == pytest.approx(exponent, abs=1e-3)
    assert law.critical_batch_size.value == pytest.approx(2e6 * (law.at_tokens / 2e9) ** exponent, rel=1e-2)
    assert not law.tied
    noisy = fit_joint(curves(exponent, budgets=(10.0, 20.0, 40.0), noise=0.002).points, "DDP-AdamW", 1e-3)
    low, high = noisy.exponent.ci or (math.nan, math.nan)
    assert low < exponent < high
    assert high - low < 0.2


def test_the_joint_model_needs_batches_that_bend_the_curve() -> None:
    with pytest.raises(NotIdentified):
        fit_joint(curves(0.5, batches=BATCHES[:2], budgets=(20.0,)).points, "DDP-AdamW", 1e-3)


@pytest.mark.parametrize(("exponent", "overhead"), [(0.46, 0.50), (0.92, 0.92)])
def test_the_definition_changes_the_exponent(exponent: float, overhead: float) -> None:
    """The 1% rule reads an exponent high, more tokens being worth less at scale; token overhead hardly does."""
    optima = curves(exponent, best_batch_at=1e-9, batches=2.0 ** np.arange(5, 26))
    points = find_critical_batches(optima, 20.0)
    assert all(p.censored == "left" for p in points)  # without other effects smaller is always better
    tokens = [p.num_tokens for p in points]
    by_rule = fit_critical_batch(tokens, [p.interpolated for p in points], bootstrap=0).value("alpha")
    by_overhead = fit_critical_batch(tokens, [p.overhead20 for p in points], bootstrap=0).value("alpha")
    assert by_overhead == pytest.approx(overhead, abs=0.05)
    assert by_rule > exponent + 0.05
    assert by_rule > by_overhead


def test_a_grid_of_powers_of_two_gives_intervals() -> None:
    for point in find_critical_batches(curves(0.6), 20.0):
        assert point.censored is None
        assert point.next_batch == 2 * point.largest_good_batch
        assert point.interpolated is not None
        assert point.largest_good_batch <= point.interpolated <= point.next_batch


@pytest.mark.parametrize(("kept", "side"), [(BATCHES[:8], "right"), (BATCHES[9:], "left")])
def test_a_censored_scale_is_flagged_and_takes_no_part_in_a_law(kept: Array, side: str) -> None:
    optima = curves(0.6, batches=kept)
    points = find_critical_batches(optima, 20.0)
    censored = [p for p in points if side in (p.censored or "")]
    assert censored
    assert all(
        value_of(p, d) is None for p in censored for d in ("cbs_1pct", "cbs_1pct_interpolated", "cbs_overhead20")
    )
    laws = [law for law in fit_laws(points, optima, 1e-3, 0, 0) if law.definition == "cbs_1pct"]
    (law,) = laws
    if law.fit is None:
        assert f"{side}-censored" in (law.reason or "")
    else:
        assert law.fit.num_points == len(points) - len(censored)


def test_noise_between_seeds_widens_the_interval_of_an_exponent() -> None:
    quiet, noisy = curves(0.6), curves(0.6)
    noisy = Optima(noisy.settings, noisy.points, noisy.best, 0.004, 1)
    widths = []
    for optima in (quiet, noisy):
        laws = fit_laws(find_critical_batches(optima, 20.0), optima, 1e-3, 100, 0)
        (fit,) = (law.fit for law in laws if law.definition == "cbs_1pct_interpolated")
        assert fit is not None
        low, high = fit.parameters["alpha"].ci or (math.nan, math.nan)
        widths.append(high - low)
        assert low <= fit.value("alpha") <= high
    assert widths[1] > 1.2 * widths[0]


# Equal loss


def two_series(gain: float = 1.3, noise: float = 0.0) -> pd.DataFrame:
    """A series that needs `gain` times less compute than the baseline, noise shared by scale."""
    generator = np.random.default_rng(1)
    flops = 120 * SIZES**2
    shared = generator.normal(size=len(flops))
    rows = []
    for series, factor in (("DDP-AdamW", 1.0), ("MuLoCo K=1", gain)):
        own = shared + 0.2 * generator.normal(size=len(flops))
        loss = (1.7 + 4e3 * (factor * flops) ** -0.19) * np.exp(noise * own)
        for n, c, value in zip(SIZES, flops, loss, strict=True):
            rows.append({"series": series, "num_params": int(n), "flops": c, "loss": value, "edges": []})
    return pd.DataFrame(rows)


def test_planted_compute_and_time_ratios_come_out_in_pairs() -> None:
    best = two_series(1.3)
    iso = compute_iso_loss(best, ["DDP-AdamW", "MuLoCo K=1"], "DDP-AdamW", 1e-3, 50, 0)
    assert [r.value for r in iso.ratios] == pytest.approx([1.3] * 5, rel=1e-6)
    tokens, labels = 20 * SIZES, [int(n) for n in SIZES]
    batches = {"DDP-AdamW": 1e5 * (tokens / 1e8) ** 0.5, "MuLoCo K=1": 1e5 * (tokens / 1e8) ** 0.9}
    fits = {
        name: fit_critical_batch(tokens, values, bootstrap=50, seed=0, resample_by=labels)
        for name, values in batches.items()
    }
    points = {"MuLoCo K=1": [float(120 * n**2) for n in SIZES]}
    found = compute_time_ratios(iso.fit, fits, "cbs_1pct", "DDP-AdamW", points, np.array([1e20]), 20.0, 5)
    for n, ratio in zip(SIZES, found.ratios, strict=True):
        own = 1e5 * (20 * n / 1e8) ** 0.9
        base = 1e5 * (20 * math.sqrt(1.3) * n / 1e8) ** 0.5
        assert ratio.value == pytest.approx(1.3 * own / base, rel=1e-5)
        assert ratio.ci is not None
        assert ratio.undefined == 0
    laws = {name: np.array([e.value]) for name, e in iso.fit.parameters.items()}
    assert at_baselines_flops(laws, "DDP-AdamW", "MuLoCo K=1", 1.3e20) == pytest.approx(1e20, rel=1e-6)


def test_what_scales_have_in_common_cancels_in_paired_ratios() -> None:
    best = two_series(noise=0.004)
    iso = compute_iso_loss(best, ["DDP-AdamW", "MuLoCo K=1"], "DDP-AdamW", 1e-3, 300, 0)
    unpaired = fit_loss_compute(best["flops"], best["loss"], groups=best["series"].tolist(), bootstrap=300)
    flops = float(best["flops"].max())
    paired_ci = iso.ratios[-1].ci
    unpaired_ci, _ = interval_of(ratio_at(unpaired.draws, "DDP-AdamW", "MuLoCo K=1", flops), iso.ratios[-1].value, 5)
    assert paired_ci is not None
    assert unpaired_ci is not None
    assert paired_ci[1] - paired_ci[0] < 0.7 * (unpaired_ci[1] - unpaired_ci[0])


def test_a_ratio_that_does_not_exist_is_counted() -> None:
    laws = {"E[a]": np.array([1.0, 2.0]), "A[a]": np.ones(2), "alpha[a]": np.ones(2)}
    laws |= {"E[b]": np.array([1.5, 1.5]), "A[b]": np.ones(2), "alpha[b]": np.ones(2)}
    draws = ratio_at(laws, "a", "b", 1e3)
    assert np.isfinite(draws).tolist() == [True, False]
    assert interval_of(draws, float(draws[0]), 5)[1] == 1


def test_sensitivity_names_every_choice() -> None:
    best = two_series(noise=0.002)
    best["edges"] = [["lr low"] if i == 0 else [] for i in range(len(best))]
    variants = loss_variants(best, ["DDP-AdamW", "MuLoCo K=1"], "DDP-AdamW", 1e-3)
    names = dict.fromkeys(v.name for v in variants)
    words = ("as reported", "least squares", "Huber 0.01", "for each series", "smallest", "largest", "edge")
    assert all(any(word in name for name in names) for word in words)
    assert all(v.ratio is not None or v.reason for v in variants if v.series != "DDP-AdamW")


# Size and data


def test_budgets_of_equal_compute_have_a_best_size_off_the_edges() -> None:
    rows = [
        {
            "series": "s",
            "num_params": int(n),
            "num_tokens": c / 6 / n,
            "flops": c,
            "loss": 1 + 0.01 * np.log(n / at) ** 2,
        }
        for c, at in ((1e18, 1e8), (1e19, 1e10))
        for n in SIZES
    ]
    inside, outside = find_budgets(pd.DataFrame(rows), ["s"])
    assert inside.best_num_params == pytest.approx(1e8, rel=0.02)
    assert outside.best_num_params is None
    assert inside.flops == 1e18


def test_size_and_data_need_several_token_budgets() -> None:
    optima = curves(0.6, budgets=(10.0, 20.0, 40.0))
    (law,) = fit_size_and_data(optima.best, ["DDP-AdamW"], 1e-3, 0, 0)
    assert law.fit is not None
    assert 0 < (law.allocation or 0) < 1
    one = optima.best[optima.best["tokens_per_parameter"] == 20.0]
    (refused,) = fit_size_and_data(pd.concat([one, one]), ["DDP-AdamW"], 1e-3, 0, 0)
    assert refused.fit is None
    assert "rise together" in (refused.reason or "")


@pytest.mark.parametrize("num_sizes", [5, 7])
def test_points_that_branch_from_one_run_are_one_cluster(num_sizes: int) -> None:
    sizes = np.geomspace(1e7, 1e9, num_sizes)
    best = curves(0.6, sizes=sizes, budgets=(10.0, 20.0, 40.0), noise=0.003).best.assign(hyper_parameters="lr=1")
    names = [f"{row.num_params} {row.tokens_per_parameter:g}" for row in best.itertuples()]
    runs = best.assign(run_id=names, parent=None)
    assert trunks_of(best, runs) is None
    # The smallest budget goes on from the middle one, as that does from the largest.
    before = {"10": "20", "20": "40"}
    parts = [name.split() for name in names]
    parents = [f"{size} {before[budget]}" if budget in before else None for size, budget in parts]
    trunks = trunks_of(best, runs.assign(parent=parents))
    assert trunks is not None
    assert trunks.groupby(best["num_params"]).nunique().tolist() == [1] * num_sizes
    assert trunks.nunique() == num_sizes
    (law,) = fit_size_and_data(best, ["DDP-AdamW"], 1e-3, 40, 0, trunks)
    assert law.fit is not None
    if num_sizes == 5:
        assert law.fit.parameters["alpha"].ci is None
        assert law.reason == "no intervals: 15 points branch from 5 runs, for 5 numbers"
    else:
        assert law.fit.interval.startswith("weighted bootstrap over clusters of points")
        assert law.fit.parameters["alpha"].ci is not None


def test_settings_that_share_a_trunk_by_any_seed_are_one_cluster() -> None:
    row = {"series": "s", "num_params": 1, "global_batch_tokens": 1, "hyper_parameters": ""}
    best = pd.DataFrame([{**row, "tokens_per_parameter": budget} for budget in (1.0, 2.0, 3.0, 4.0)])
    seeds = [(1.0, "a", None), (2.0, "b", None), (3.0, "c", "a"), (3.0, "d", "b"), (4.0, "e", None)]
    runs = pd.DataFrame(
        [{**row, "tokens_per_parameter": d, "run_id": run, "parent": parent} for d, run, parent in seeds]
    )
    trunks = trunks_of(best, runs)
    assert trunks is not None
    assert [len(set(trunks[:3])), trunks.nunique()] == [1, 2]


# Wall clock


def test_synchronising_every_h_steps_divides_what_the_link_costs() -> None:
    assume = Assumptions(step_seconds=1.0, bits_per_value=16)
    every = Training(10**9, 1e9, 1e6)
    apart = Training(10**9, 1e9, 1e6, num_workers=8, sync_interval=25)
    packed = Training(10**9, 1e9, 1e6, num_workers=8, sync_interval=25, compression=4)
    alone = Training(10**9, 1e9, 1e6, num_workers=1, sync_interval=25, compression=4)
    compute = 1000.0
    costs = [idealised_seconds(run, 16 * GIGABIT, assume) - compute for run in (every, apart, packed, alone)]
    assert costs == pytest.approx([1000, 40, 10, 1000])
    assert [charles_seconds(run, math.inf, assume) for run in (every, apart)] == pytest.approx(
        [6e18 / (1024 * 4e14) + 1000 * 1e-4, 6e18 / (1024 * 4e14) + 40 * 1e-4]
    )
    one_link = [
        charles_seconds(run, 16 * GIGABIT, assume) - charles_seconds(run, math.inf, assume) for run in (every, packed)
    ]
    assert one_link == pytest.approx([2000 * (1 - 1 / 1024), 20 * (1 - 1 / 1024)])
    assert measured_seconds(every, 8 * GIGABIT, Measured(0.5, 2e9)) == pytest.approx(1000 * (0.5 + 2))


# Coverage


def loss_compute(generator: np.random.Generator) -> tuple[float, tuple[float, float] | None]:
    flops = np.geomspace(1e17, 1e22, 16)
    loss = (1.7 + 4e3 * flops**-0.19) * np.exp(0.004 * generator.normal(size=16))
    fit = fit_loss_compute(flops, loss, bootstrap=200)
    return 0.19, fit.parameters["alpha"].ci


def size_and_data(generator: np.random.Generator) -> tuple[float, tuple[float, float] | None]:
    n = np.exp(generator.uniform(np.log(4e7), np.log(1e10), 130))
    d = generator.choice(np.geomspace(6e18, 3e21, 9), 130) / (6 * n)
    loss = (1.82 + 480 * n**-0.35 + 2140 * d**-0.37) * np.exp(0.003 * generator.normal(size=130))
    fit = fit_chinchilla(n, d, loss, bootstrap=100)
    return 0.35, fit.parameters["alpha"].ci


@pytest.mark.thorough
@pytest.mark.parametrize("simulate", [loss_compute, size_and_data])
def test_intervals_hold_the_truth_about_as_often_as_they_say(
    simulate: Callable[[np.random.Generator], tuple[float, tuple[float, float] | None]],
) -> None:
    covered = 0
    for seed in range(STUDIES):
        truth, ci = simulate(np.random.default_rng(seed))
        assert ci is not None
        covered += ci[0] <= truth <= ci[1]
    assert 0.90 <= covered / STUDIES <= 0.99
