"""Where laws cross: a planted crossing is found, parallel laws do not cross, close ones cannot be told."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.input.table_files import read_tables
from analysis.questions.crossings import Crossing, cross
from analysis.questions.crossings import _end as end_of
from analysis.questions.iso_loss import compute_iso_loss
from analysis.questions.options import Options
from analysis.report.content import build_report
from analysis.table import Declared, study_of_table

SIZES = [2e7 * 2**i for i in range(7)]


def best_of(gap: float, slope: float, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """AdamW's reducible loss over the other's is exp(gap) at 1e18 flops and changes as the power `slope` of compute."""
    generator, rows = np.random.default_rng(seed), []
    for n in SIZES:
        flops, shared = 120.0 * n * n, generator.normal()
        for name, apart in (("DDP-AdamW", 0.0), ("DDP-Muon", -gap - slope * np.log(flops / 1e18))):
            reducible = 4e3 * flops**-0.19 * np.exp(apart)
            loss = (1.7 + reducible) * np.exp(noise * (generator.normal() + shared) / np.sqrt(2))
            rows.append((name, int(n), flops, 20 * n, loss))
    return pd.DataFrame(rows, columns=["series", "num_params", "flops", "num_tokens", "loss"])


def crossing_of(best: pd.DataFrame) -> Crossing:
    iso = compute_iso_loss(best, ["DDP-AdamW", "DDP-Muon"], "DDP-AdamW", 1e-3, 200, 0)
    return cross(iso, "DDP-AdamW", "DDP-Muon", best["flops"].min(), best["flops"].max(), 20.0)


def test_a_planted_crossing_is_found_with_its_size() -> None:
    found = crossing_of(best_of(0.0, 0.03, noise=2e-4))
    assert found.standing == "cross"
    assert (found.better_below, found.better_above) == ("DDP-AdamW", "DDP-Muon")
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 1e18 <= found.high
    assert found.flops == pytest.approx(1e18, rel=0.3)
    assert found.num_params == pytest.approx((found.flops / 120.0) ** 0.5)


def test_laws_that_do_not_cross_and_those_that_cannot_be_told() -> None:
    apart = crossing_of(best_of(0.1, 0.0, noise=2e-4))
    assert (apart.standing, apart.flops, apart.better_below) == ("do not cross within the data", None, "DDP-Muon")
    assert crossing_of(best_of(0.0, 0.001, noise=3e-3)).standing == "cannot be told"


def test_a_law_that_misses_by_more_than_the_gap_knows_no_side() -> None:
    best = best_of(0.1, 0.0, noise=2e-4)
    best.loc[best["num_params"] == best["num_params"].max(), "loss"] *= 1.2
    found = crossing_of(best)
    assert (found.standing, found.better_below, found.better_above) == ("cannot be told", None, None)
    assert found.prediction_error is not None
    assert found.prediction_error > 0.1


def test_one_side_may_be_known_where_the_other_is_not() -> None:
    """The gap shrinks with compute: at the largest size the law misses by more."""
    best = best_of(0.02, -0.004, noise=1e-5)
    best.loc[best["num_params"] == best["num_params"].max(), "loss"] *= 1.006
    found = crossing_of(best)
    assert (found.standing, found.better_below, found.better_above) == ("cannot be told", "DDP-Muon", None)
    assert found.high is None
    assert end_of(np.arange(4.0), np.array([-3.0, -1.0, 1.0, 2.0])) == pytest.approx(np.exp(1.5))
    assert end_of(np.arange(3.0), np.ones(3)) is None


def test_an_exact_crossing_has_a_narrow_interval() -> None:
    found = crossing_of(best_of(0.0, 0.03))
    assert found.standing == "cross"
    assert found.high is not None
    assert found.low is not None
    assert found.high / found.low < 1.1
    assert found.low <= 1e18 <= found.high


def test_the_report_has_the_crossing_in_words(tmp_path: Path) -> None:
    frame = best_of(0.0, 0.03, noise=2e-4).rename(columns={"series": "algorithm"})
    frame.assign(global_batch_tokens=65536, lr=0.01).to_csv(tmp_path / "runs.csv", index=False)
    study = study_of_table("runs", read_tables([tmp_path / "runs.csv"], None, None), {}, Declared())
    report = build_report(study, Options(bootstrap=100))
    said = " ".join(report["verdict"]["findings"])
    assert "The laws of DDP-AdamW and DDP-Muon cross at" in said
    assert "below, DDP-AdamW has the lower loss, above, DDP-Muon." in said
    without = build_report(study, Options(bootstrap=0))["questions"]["crossings"]
    assert "--bootstrap" in without["reason"]
