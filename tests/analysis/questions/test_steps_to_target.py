"""The critical batch from curves: planted ones are recovered, straight ones refused."""

from pathlib import Path

import numpy as np
import pytest
from planted import run_config, write_run

from analysis.laws.solver import Array
from analysis.questions.options import Options
from analysis.questions.steps_to_target import steps_to_target
from analysis.report.content import build_report
from analysis.runs import load_study
from muloco_runner.record import StepRecord

BATCHES = 2.0 ** np.arange(14, 21)


def curve(batch: float, critical: float, noise: float = 0.0, seed: int = 0) -> Array:
    """Losses that fall with S / (1 + B_c / B), logged at rounded steps."""
    generator = np.random.default_rng([seed, int(batch)])
    steps = np.unique(np.geomspace(50, 60_000, 60).round())
    effective = steps / (1 + critical / batch) * np.exp(noise * generator.normal())
    return np.stack([steps, 2 + 10 * effective**-0.4], axis=1)


def test_a_planted_critical_batch_is_recovered_from_curves() -> None:
    exact = steps_to_target("s", 10**8, 20.0, {b: curve(b, 2e5) for b in BATCHES})
    assert exact.critical_batch is not None
    assert exact.critical_batch.value == pytest.approx(2e5, rel=0.01)
    assert exact.steps == sorted(exact.steps, reverse=True)
    held = 0
    for seed in range(20):
        noisy = steps_to_target("s", 10**8, 20.0, {b: curve(b, 2e5, 0.05, seed) for b in BATCHES}).critical_batch
        assert noisy is not None
        low, high = noisy.ci or (0.0, 0.0)
        held += low <= 2e5 <= high
    assert held >= 15  # fewer in one of 3,000 sets of twenty, if intervals cover .95


def test_curves_that_do_not_bend_are_refused() -> None:
    straight = steps_to_target("s", 10**8, 20.0, {b: curve(b, 1e12) for b in BATCHES})
    assert straight.critical_batch is None
    assert "larger ones are needed" in (straight.reason or "")
    few = steps_to_target("s", 10**8, 20.0, {b: curve(b, 2e5) for b in BATCHES[:3]})
    assert few.reason == "3 batches have curves of validation losses, 4 are needed"


def test_curves_are_found_from_a_study_or_its_folder_of_runs(tmp_path: Path) -> None:
    for batch in (2048, 4096, 8192, 16384):
        folder = write_run(tmp_path, run_config(batch=batch), 2.0)
        for step, loss in curve(batch, 6e3):
            folder.append_record(StepRecord(int(step), int(step) * batch, validation_loss=float(loss)))
    for root in (tmp_path, tmp_path / "runs"):
        found = build_report(load_study(root), Options(bootstrap=0))["questions"]["steps_to_target"]
        assert found["reason"] is None, root
        (scale,) = found["scales"]
        assert scale["critical_batch"]["value"] == pytest.approx(6e3, rel=0.01)
