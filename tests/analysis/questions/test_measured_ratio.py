"""Steps, tokens, device time and memory beside the compute ratio: planted ones come out, and what may not be compared
is not.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted import run_config, write_run

from analysis.input.table_files import read_tables
from analysis.questions.measured_ratio import MeasuredRatio, measured_ratio
from analysis.questions.options import Options
from analysis.report.content import build_report
from analysis.runs import load_study
from analysis.table import Declared, study_of_table
from muloco_runner.record import StepRecord

SIZES = [10**7 * 2**i for i in range(6)]


def best_of(noise: float = 0.0, seed: int = 0, **changes: Any) -> pd.DataFrame:
    """The baseline takes 3 C^-.05 times the memory of the other; three sizes on other devices where asked for."""
    generator, rows = np.random.default_rng(seed), []
    for n in SIZES:
        for name, factor in (("base", 3.0 * (120.0 * n * n / 1e18) ** -0.05), ("other", 1.0)):
            memory = 20.0 * n**0.9 * factor * np.exp(noise * generator.normal())
            rows.append((name, n, 120.0 * n * n, memory, "cpu", 1.0))
    frame = pd.DataFrame(rows, columns=["series", "num_params", "flops", "memory_bytes", "device", "num_ranks"])
    return frame.assign(**changes)


def memory(best: pd.DataFrame) -> MeasuredRatio:
    return measured_ratio(best, "base", "other", "memory_bytes", 1e18)


def test_a_ratio_that_changes_with_size_stands_at_the_stated_compute() -> None:
    found = memory(best_of())
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(3.0)
    assert found.growth.value == pytest.approx(0.9 / 2 - 0.05)


def test_what_ran_elsewhere_is_not_compared() -> None:
    best = best_of()
    assert memory(best_of(device=best["series"])).reason == "recorded on other devices, or another number of them"
    assert memory(best_of(num_ranks=np.nan)).ratio is None
    assert memory(best_of(memory_bytes=np.nan)).reason == "not recorded at a size that both have"
    few = memory(best[best["num_params"] <= SIZES[1]])
    assert few.ratio is not None
    assert few.ratio.ci is None
    assert few.reason == "2 size(s) recorded, 3 are needed for an interval"


def test_one_table_has_every_ratio_of_a_study(tmp_path: Path) -> None:
    """Muon needs 1.25 times less compute, takes 1.5 times the time for each flop and a third of the memory."""
    lines = ["algorithm,num_params,num_tokens,global_batch_tokens,lr,loss,train_seconds,gpus,memory_bytes"]
    for name, gain, speed, bytes_of in (("DDP-AdamW", 1.0, 1.0, 12.0), ("DDP-Muon", 1.25, 1.5, 4.0)):
        for n in SIZES:
            loss = 1.7 + 4e3 * (gain * 120.0 * n * n) ** -0.19
            seconds = speed * 120.0 * n * n / 1e14 / 8
            lines.append(f"{name},{n},{20 * n},65536,0.01,{loss:.12g},{seconds:.12g},8,{bytes_of * n:.12g}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines))
    study = study_of_table("runs", read_tables([path], None, None), {}, Declared())
    report = build_report(study, Options(bootstrap=20))
    (one,) = report["questions"]["one_compute"]["series"]
    assert one["compute_ratio"] == pytest.approx(1.25, rel=1e-4)
    assert one["tokens_ratio"] == pytest.approx(1.25**0.5, rel=1e-4)
    assert one["device_time_ratio"] == pytest.approx(1.25 / 1.5, rel=1e-4)
    assert one["memory_ratio"] == pytest.approx(3.0, rel=1e-6)
    assert one["not_measured"] == {}
    (hours, *_) = [entry["device_hours"] for entry in report["audit"]["by_series"]]
    assert hours == pytest.approx(sum(120.0 * n * n / 1e14 for n in SIZES) / 3600)


def test_memory_is_the_most_that_the_best_run_recorded(tmp_path: Path) -> None:
    for lr, loss, peak in ((0.01, 2.2, 7_000_000), (0.02, 2.1, 5_000_000)):
        folder = write_run(tmp_path, run_config(lr=lr), loss)
        for step, used in ((1, 10), (2, peak), (3, 20)):
            folder.append_record(StepRecord(step, 4096 * step, loss=2.5, memory_bytes=used))
    report = build_report(load_study(tmp_path), Options(bootstrap=0))
    (row,) = report["best"]
    assert row["memory_bytes"] == 5_000_000


def test_settings_tried_are_counted_by_one_rule(tmp_path: Path) -> None:
    """Two rates at two sizes and two batches, one of them with two seeds: eight settings in folders and in a table."""
    rows = []
    for model in ("29k", "42k"):
        for batch in (4096, 8192):
            for lr in (0.01, 0.02):
                for seed in (0, 1) if lr == 0.01 else (0,):
                    config = run_config(model=model, batch=batch, lr=lr, seed=seed)
                    loss = 2.5 + lr + batch / 1e5 + seed / 1e3
                    write_run(tmp_path, config, loss)
                    rows.append((config.algorithm, config.num_params, config.num_tokens, batch, lr, seed, loss))
    names = ["algorithm", "num_params", "num_tokens", "global_batch_tokens", "lr", "seed", "loss"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "runs.csv", index=False)
    table = study_of_table("runs", read_tables([tmp_path / "runs.csv"], None, None), {}, Declared())
    for study in (load_study(tmp_path), table):
        (entry,) = build_report(study, Options(bootstrap=0))["audit"]["by_series"]
        assert (entry["runs"], entry["settings"]) == (12, 8), study.source
