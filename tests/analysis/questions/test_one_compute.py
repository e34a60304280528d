"""All series at one compute: the planted factor, its direction, and when the law may not be believed."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.input.table_files import read_tables
from analysis.published.published_tables import charles_losses, swept_losses
from analysis.questions.one_compute import standing_of
from analysis.questions.options import Options
from analysis.report.content import build_report
from analysis.table import Declared, study_of_table
from muloco_runner.config import ConfigError

SIZES = [10**7 * 2**i for i in range(6)]


def table(path: Path, last: float = 0.0) -> Path:
    """Muon needs 1.25 times less compute than AdamW; K=8 stops two sizes earlier. `last` bends the largest size."""
    lines = ["algorithm,num_params,num_tokens,global_batch_tokens,lr,loss"]
    for name, gain, sizes in (("DDP-AdamW", 1.0, 6), ("DDP-Muon", 1.25, 6), ("MuLoCo", 1.1, 4)):
        for i, n in enumerate(SIZES[:sizes]):
            loss = 1.7 + 4e3 * (gain * 120.0 * n * n) ** -0.19
            loss *= math.exp(last if i == 5 else 0.0)
            lines.append(f"{name},{n},{20 * n},65536,0.01,{loss:.12g}")
    path.write_text("\n".join(lines))
    return path


def content_of(path: Path, baseline: str | None = None) -> dict[str, Any]:
    study = study_of_table(str(path), read_tables([path], None, None), {}, Declared())
    return build_report(study, Options(bootstrap=20, baseline=baseline))


def test_every_series_stands_at_the_largest_compute_that_all_have(tmp_path: Path) -> None:
    report = content_of(table(tmp_path / "runs.csv"))
    found = report["questions"]["one_compute"]
    assert found["flops"] == pytest.approx(120.0 * SIZES[3] ** 2)
    (ratio, *_) = [one["compute_ratio"] for one in found["series"] if one["series"] == "DDP-Muon"]
    assert ratio == pytest.approx(1.25, rel=1e-4)
    said = " ".join(report["verdict"]["findings"])
    assert re.search(r"DDP-AdamW needs 1\.25 \[.*?\] times the compute of DDP-Muon at 7\.68e17 FLOPs", said)


def test_a_named_baseline_turns_the_ratio_around(tmp_path: Path) -> None:
    path = table(tmp_path / "runs.csv")
    report = content_of(path, "DDP-Muon")
    (adamw, *_) = report["questions"]["one_compute"]["series"]
    assert adamw["series"] == "DDP-AdamW"
    assert adamw["compute_ratio"] == pytest.approx(1 / 1.25, rel=1e-4)
    with pytest.raises(ConfigError, match="--baseline SGD: no such series; these runs have: DDP-AdamW"):
        content_of(path, "SGD")


def test_a_law_that_misses_by_more_than_the_gap_tells_nothing_apart(tmp_path: Path) -> None:
    report = content_of(table(tmp_path / "runs.csv", last=0.05))
    found = {one["series"]: one for one in report["questions"]["one_compute"]["series"]}
    muon = found["DDP-Muon"]
    assert muon["prediction_error"] > abs(muon["gap"])
    assert muon["standing"] == "cannot be told apart"
    said = " ".join(report["verdict"]["findings"])
    assert "times the compute of DDP-Muon" in said
    assert "but the law cannot tell them apart" in said


@pytest.mark.parametrize(
    ("ci", "gap", "error", "few", "standing"),
    [
        ((1.1, 1.3), 0.02, 0.01, False, "established"),
        ((0.7, 0.9), -0.02, 0.01, False, "established"),
        ((1.1, 1.3), 0.02, 0.03, False, "cannot be told apart"),
        ((1.1, 1.3), 0.02, 0.01, True, "too few sizes"),
        ((0.9, 1.3), 0.02, 0.01, False, "not established"),
        (None, 0.02, None, False, "not established"),
    ],
)
def test_what_may_be_said(
    ci: tuple[float, float] | None, gap: float, error: float | None, few: bool, standing: str
) -> None:
    assert standing_of(ci, gap, error, few) == standing


def test_the_published_comparisons_stand_at_one_compute(tmp_path: Path) -> None:
    """Ratios of arXiv 2505.23725 near its 1.26e21, and of 2503.09799, where K=8 alone is told from data parallel."""
    paper, charles = swept_losses(), charles_losses()
    workers = charles["M"].replace("DP", "1").astype(int)
    names = np.where(charles["M"] == "DP", "DDP-AdamW", "DiLoCo")
    charles = charles.assign(algorithm=names, num_workers=workers, num_tokens=20 * charles["num_params"])
    paper = paper.assign(algorithm=paper["series"].str.removesuffix(" K=1"), num_workers=1).drop(columns="series")
    standings, ratios = {}, {}
    for name, frame in (("paper", paper), ("charles", charles.drop(columns="M"))):
        frame.assign(global_batch_tokens=2**20, lr=0.01).to_csv(tmp_path / name, index=False)
        found = content_of((tmp_path / name).rename(tmp_path / f"{name}.csv"))["questions"]["one_compute"]
        standings[name] = {one["series"]: one["standing"] for one in found["series"]}
        ratios[name] = {one["series"]: one["compute_ratio"] for one in found["series"]}
    # A little below 1.26e21, where they are 1.307, 1.204 and 1.341.
    expected = {"DDP-Muon": 1.303, "DiLoCo K=1": 1.201, "MuLoCo K=1": 1.338}
    assert ratios["paper"] == pytest.approx(expected, abs=0.002)
    assert set(standings["paper"].values()) == {"cannot be told apart"}
    assert list(ratios["charles"].values()) == sorted(ratios["charles"].values(), reverse=True)
    assert {name for name, one in standings["charles"].items() if one == "established"} == {"DiLoCo K=8"}
