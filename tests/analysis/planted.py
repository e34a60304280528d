"""Run folders whose losses follow a known law, written through the run folder's own writers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muloco_runner.config import (
    AdamWConfig,
    ConfigError,
    DataParallelConfig,
    DiLoCoConfig,
    ModelConfig,
    MuonConfig,
    RunConfig,
)
from muloco_runner.record import RecordHeader, RunFolder, RunResult, RunStatus, StepRecord

CORPUS = "c0ffee" * 8
LADDER = {
    "29k": (32, 1),
    "42k": (32, 2),
    "82k": (48, 2),
    "134k": (64, 2),
    "235k": (64, 4),
    "503k": (96, 4),
    "1.1m": (144, 4),
}
"""Width and layers."""


def run_config(
    algorithm: str = "DDP-AdamW",
    model: str = "29k",
    batch: int = 4096,
    lr: float = 0.01,
    num_workers: int = 1,
    budget: float = 20.0,
    seed: int = 0,
    sync_interval: int = 10,
) -> RunConfig:
    width, num_layers = LADDER[model]
    shape = ModelConfig(width=width, num_layers=num_layers, head_width=16, vocab_size=256, sequence_length=128)
    outer = algorithm in ("DiLoCo", "MuLoCo")
    return RunConfig(
        model=shape,
        method=DiLoCoConfig(num_workers=num_workers, sync_interval=sync_interval) if outer else DataParallelConfig(),
        inner_optimizer=MuonConfig(lr=lr) if algorithm in ("DDP-Muon", "MuLoCo") else AdamWConfig(lr=lr),
        global_batch_tokens=batch,
        tokens_per_parameter=budget,
        seed=seed,
    )


class Law:
    """L = E + A_m N^-a + B D_eff^-b, D_eff = D / (1 + B/B_c), a parabola in log lr, and noise between seeds.

    Batches well below the critical one lose a little too, so that the best batch lies inside a grid.
    """

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise
        self.gain = {"DDP-AdamW": 1.0, "DDP-Muon": 0.95, "DiLoCo": 0.98, "MuLoCo": 0.94}
        self.growth = {"DDP-AdamW": 0.45, "DDP-Muon": 0.9, "DiLoCo": 0.45, "MuLoCo": 0.9}

    def critical_batch(self, algorithm: str, num_tokens: float) -> float:
        return float(2e4 * (num_tokens / 1e6) ** self.growth[algorithm])

    def loss(self, config: RunConfig) -> float:
        critical = self.critical_batch(config.algorithm, config.num_tokens)
        effective = config.num_tokens / (1 + config.global_batch_tokens / critical)
        small = max(0.0, math.log2(critical / 8 / config.global_batch_tokens))
        reducible = 12 * config.num_params**-0.3 + 40 * effective**-0.3
        apart = 1 + 0.01 * math.log2(config.num_workers)
        off = math.log(config.inner_optimizer.lr / 0.01)
        draw = np.random.default_rng([config.seed, int(config.run_id, 16)]).normal()
        value = 1.0 + self.gain[config.algorithm] * apart * reducible * (1 + 0.03 * off**2) * (1 + 0.05 * small**2)
        return float(value * math.exp(self.noise * draw))


def write_run(root: Path, config: RunConfig, loss: float | None, corpus: str = CORPUS, **changes: Any) -> RunFolder:
    """A finished run; diverged where `loss` is None."""
    folder = start_run(root, config, corpus)
    finished = RunResult(
        run_id=config.run_id,
        algorithm=config.algorithm,
        diverged=loss is None,
        validation_loss=loss,
        local_validation_loss=None,
        train_loss=loss,
        num_params=config.num_params,
        num_steps=config.num_steps,
        num_tokens=config.num_tokens,
        flops=config.flops,
        train_seconds=config.flops / 1e10,
        wall_seconds=config.flops / 9e9,
        bytes_sent=4 * config.num_params * config.num_steps,
        corpus_hash=corpus,
        device="cpu",
        versions={"torch": "2.13.0"},
    )
    for name, value in changes.items():
        setattr(finished, name, value)
    folder.write_result(finished)
    return folder


def start_run(root: Path, config: RunConfig, corpus: str = CORPUS) -> RunFolder:
    """A run with its config, header and a few steps, but no result."""
    folder = RunFolder.of(root, config.run_id)
    folder.write_config(config.to_dict())
    folder.append_record(
        RecordHeader(
            run_id=config.run_id,
            algorithm=config.algorithm,
            config=config.to_dict(),
            corpus_hash=corpus,
            num_params=config.num_params,
            num_steps=config.num_steps,
            num_tokens=config.num_tokens,
            bytes_per_token=1.0,
            baselines={"unigram": 3.2, "bigram": 2.41},
        )
    )
    for share in (0.5, 0.9, 1.0):
        step = max(1, int(share * config.num_steps))
        cosine = 0.8 * config.num_workers**-0.2 if config.num_workers > 1 else None
        folder.append_record(
            StepRecord(step, step * config.global_batch_tokens, loss=2.0, pseudogradient_cosine=cosine)
        )
    folder.write_status(RunStatus(config.run_id, "running", step=1, num_steps=config.num_steps))
    return folder


def write_sweep(
    root: Path,
    law: Law,
    models: Sequence[str] = ("29k", "42k", "82k", "134k", "235k"),
    batches: Sequence[int] = (2048, 4096, 8192, 16384, 32768),
    lrs: Sequence[float] = (0.005, 0.01, 0.02),
    budgets: Sequence[float] = (20.0,),
    seeds: Sequence[int] = (0,),
    workers: Sequence[int] = (1,),
) -> list[RunConfig]:
    """Every algorithm over the product of the axes; data parallel has one worker."""
    configs = [
        run_config(algorithm, model, batch, lr, k, budget, seed)
        for algorithm in law.gain
        for k in (workers if algorithm in ("DiLoCo", "MuLoCo") else (1,))
        for model in models
        for batch in batches
        for lr in lrs
        for budget in budgets
        for seed in seeds
    ]
    for config in configs:
        write_run(root, config, law.loss(config))
    return configs


def write_study(root: Path, law: Law, lrs: Sequence[float] = (0.0025, 0.005, 0.01, 0.02, 0.04)) -> int:
    """A study as large and as uneven as a published one: five sizes, K from 1 to 16, grids of batches and rates, a few
    seeds and token budgets, some runs diverged, some unfinished. Returns the number of run folders, 2,200 by default.
    """
    generator = np.random.default_rng(0)
    seen: set[str] = set()

    def add(algorithm: str, model: str, batch: int, lr: float, **changes: Any) -> None:
        workers = changes.get("num_workers", 1)
        try:
            config = run_config(algorithm, model, batch, lr, **changes)
        except ConfigError:  # a batch that does not divide, or a run too short for it
            return
        if config.run_id in seen or config.num_steps < 50 or batch // workers < 512:
            return
        seen.add(config.run_id)
        unfinished, diverged = generator.random(2)
        if unfinished < 0.01:
            start_run(root, config)
        else:
            write_run(root, config, None if lr > 0.035 and diverged < 0.3 else law.loss(config))

    for model in ("82k", "134k", "235k", "503k", "1.1m"):
        for algorithm in law.gain:
            for workers in (1, 2, 4, 8, 16) if algorithm in ("DiLoCo", "MuLoCo") else (1,):
                for exponent in range(10, 18):
                    for lr in lrs:
                        add(algorithm, model, 2**exponent, lr, num_workers=workers)
            for exponent in range(10, 17):
                for seed in (1, 2):
                    add(algorithm, model, 2**exponent, 0.01, seed=seed)
                for budget in (5.0, 10.0, 50.0 / 3, 40.0):
                    add(algorithm, model, 2**exponent, 0.01, budget=budget)
                for compute in (3e12, 1.2e13):  # the same for every size
                    num_params = run_config(model=model).num_params
                    add(algorithm, model, 2**exponent, 0.01, budget=compute / (6 * num_params**2))
    return len(seen)
