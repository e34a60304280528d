"""A run with the fast backend learns what it learns with the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from statistics import fmean

import pytest

from muloco_runner.config import ExecutionConfig, RunConfig
from muloco_runner.job import run_job
from muloco_runner.optimizers.orthogonalize import cpu
from muloco_runner.record import RunFolder


@pytest.mark.thorough
def test_the_loss_curve_lies_within_seed_noise_of_the_references(
    tiny_run: Callable[..., RunConfig],
    new_folder: Callable[..., RunFolder],
    execution: ExecutionConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: True)
    monkeypatch.setattr(cpu, "SMALLEST_BFLOAT16_SIDE", 1)

    def losses(backend: str, seed: int) -> list[float]:
        run = tiny_run("data_parallel", "muon", num_steps=80, seed=seed)
        folder = new_folder(run, f"{backend}-{seed}")
        run_job(folder, dataclasses.replace(execution, muon_backend=backend))
        return [step.loss for step in folder.read_steps()]

    reference = [losses("reference", seed) for seed in range(3)]
    fast = losses("cpu", 0)
    assert fast != reference[0]
    for first in range(0, 80, 20):
        window = slice(first, first + 20)
        means = [fmean(curve[window]) for curve in reference]
        assert abs(fmean(fast[window]) - means[0]) < max(means) - min(means)
