"""Means over seeds: which seeds choose, which are shown, and series compared seed by seed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import run_config, write_run

from analysis.optima import Optima, find_optima
from analysis.questions.parts.data_audit import audit
from analysis.runs import load_study
from analysis.seeds import compare_seeds
from muloco_runner.config import WarmupStableDecayConfig

Losses = Mapping[tuple[float, int], float | None]
"""By learning rate and seed; None diverged."""


def optima_of(root: Path, losses: Losses, batch: int = 4096) -> Optima:
    for (lr, seed), loss in losses.items():
        write_run(root, run_config(lr=lr, seed=seed, batch=batch), loss)
    return find_optima(load_study(root))


def test_a_settings_loss_is_its_seeds_mean_with_standard_error(tmp_path: Path) -> None:
    losses = {(0.01, 0): 2.905, (0.01, 1): 2.95, (0.01, 2): 2.951, (0.02, 0): 2.93, (0.02, 1): 2.94, (0.02, 2): 2.947}
    (row,) = optima_of(tmp_path, losses).best.to_dict("records")
    values = np.array([2.905, 2.95, 2.951])
    assert row["lr"] == 0.01
    assert row["loss"] == pytest.approx(values.mean())
    assert row["loss_se"] == pytest.approx(values.std(ddof=1) / 3**0.5)
    assert (row["seeds"], row["unbiased"], row["shared_seeds"]) == (3, False, True)


def test_settings_are_compared_on_the_seeds_that_all_have(tmp_path: Path) -> None:
    lucky = {(0.01, 0): 2.90, (0.01, 1): 3.0, (0.01, 2): 3.02, (0.02, 0): 2.95}
    optima = optima_of(tmp_path, lucky)
    (row,) = optima.best.to_dict("records")
    assert (row["lr"], row["selection_loss"], row["selection_seeds"]) == (0.01, 2.90, 1)
    assert row["loss"] == pytest.approx(3.01)
    assert row["seed_losses"] == {1: 3.0, 2: 3.02}
    assert row["unbiased"]
    other = optima.settings.set_index("lr").loc[0.02]
    assert (other["loss"], other["seeds"], other["unbiased"]) == (2.95, 1, False)
    assert np.isnan(other["loss_se"])


def test_batches_are_compared_on_the_seeds_that_all_settings_have(tmp_path: Path) -> None:
    optima_of(tmp_path, {(0.01, 0): 2.90, (0.01, 1): 3.2}, batch=2048)
    optima = optima_of(tmp_path, {(0.01, 0): 2.95}, batch=4096)
    (row,) = optima.best.to_dict("records")
    # By the mean over its own seeds the batch of 2048 tokens would have lost.
    assert (row["global_batch_tokens"], row["loss"]) == (2048, 3.2)


def test_a_single_setting_was_chosen_from_none(tmp_path: Path) -> None:
    (row,) = optima_of(tmp_path, {(0.01, 0): 2.9, (0.01, 1): 3.0}).best.to_dict("records")
    assert (row["loss"], row["seeds"], row["unbiased"]) == (pytest.approx(2.95), 2, True)


def test_without_a_shared_seed_each_setting_stands_alone(tmp_path: Path) -> None:
    (row,) = optima_of(tmp_path, {(0.01, 0): 2.9, (0.02, 1): 2.8, (0.02, 2): 3.1}).best.to_dict("records")
    assert (row["lr"], row["loss"], row["shared_seeds"]) == (0.01, 2.9, False)


def test_a_setting_that_diverged_at_a_seed_is_not_chosen(tmp_path: Path) -> None:
    optima = optima_of(tmp_path, {(0.01, 0): 2.9, (0.01, 1): 2.92, (0.02, 0): 2.8, (0.02, 1): None})
    (row,) = optima.best.to_dict("records")
    assert (row["lr"], row["diverged"], row["selection_seeds"]) == (0.01, 1, 2)


def test_a_batch_with_divergence_in_all_settings_is_still_drawn(tmp_path: Path) -> None:
    (row,) = optima_of(tmp_path, {(0.01, 0): 2.9, (0.01, 1): None}).best.to_dict("records")
    assert (row["loss"], row["seeds"]) == (2.9, 1)


def test_the_order_of_runs_changes_nothing(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    losses = {(lr, seed): 3 + float(generator.normal()) / 10 for lr in (0.005, 0.01, 0.02) for seed in range(4)}
    study = load_study(_written(tmp_path, losses))
    first = find_optima(study)
    study.runs = study.runs.sample(frac=1, random_state=1, ignore_index=True)
    pd.testing.assert_frame_equal(first.best, find_optima(study).best)


def _written(root: Path, losses: Losses) -> Path:
    optima_of(root, losses)
    return root


def test_series_are_compared_seed_by_seed_where_they_share_seeds() -> None:
    noise = {0: 0.05, 1: -0.03, 2: 0.01}
    reference = {seed: 3 * float(np.exp(shift)) for seed, shift in noise.items()}
    better = {seed: loss * (0.99 + 1e-9 * seed) for seed, loss in reference.items()}
    paired = compare_seeds(better, reference)
    assert (paired.relative, paired.paired_seeds, paired.distinct) == (pytest.approx(-0.01), 3, True)
    assert paired.se == pytest.approx(0, abs=1e-8)
    apart = compare_seeds({seed + 10: loss for seed, loss in better.items()}, reference)
    assert (apart.paired_seeds, apart.distinct) == (0, False)
    assert apart.relative == pytest.approx(-0.01)
    # Two independent means with this noise: the standard error of a difference.
    assert apart.se == pytest.approx(0.99 * float(np.std(list(noise.values()), ddof=1)) * (2 / 3) ** 0.5)


def test_one_seed_has_no_standard_error() -> None:
    comparison = compare_seeds({0: 2.9}, {0: 3.0, 1: 3.1})
    assert (comparison.relative, comparison.se, comparison.distinct) == (pytest.approx(2.9 / 3 - 1), None, None)


def test_schedules_side_by_side_and_in_one_law_are_named(tmp_path: Path) -> None:
    wsd = WarmupStableDecayConfig()
    runs = [run_config(), replace(run_config(budget=40.0), schedule=wsd), run_config("DDP-Muon", budget=40.0)]
    for config in runs:
        write_run(tmp_path, config, 3.0)
    study = load_study(tmp_path)
    said = audit(study, find_optima(study), 20.0).cautions
    assert "at 40 tokens per parameter: DDP-AdamW wsd, DDP-Muon cosine" in said[0]
    assert "Best settings of DDP-AdamW are of several" in said[1]
    assert "cosine at 20 tokens per parameter; wsd at 40" in said[1]
    alike = load_study(write_run(tmp_path / "alike", run_config(), 3.0).path.parent.parent)
    assert audit(alike, find_optima(alike), 20.0).cautions == []
