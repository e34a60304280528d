"""Training runs as pieces of work: what they need of a cluster, and the function that carries them out there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muloco_runner.config import ExecutionConfig, RunConfig
from muloco_runner.record import RunFolder
from muloco_runner.targets import record_code
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.work import Need, Work
from sweeps.training.adapter import TRAINING
from sweeps.training.gpus import Gpus

_FIRST_GUESS = {"cpu": 2.0e10, "cuda": 2.0e14}
"""FLOP/s of one core or GPU at these models, for the first estimate of a run's time (the demo on an EPYC core; an H100
at about 40% of its bf16 peak)."""
_STARTUP_MINUTES = 1.0
_OF_AN_OUTER_TORCHRUN = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
"""Where a sweep was launched from a process of torchrun, its runs are no ranks of that."""


def works_of(runs: Sequence[RunConfig], root: Path, execution: ExecutionConfig, cluster: ClusterConfig) -> list[Work]:
    """One piece of work a run. Runs that no GPUs given to them can hold raise `ConfigError`."""
    settings = dataclasses.asdict(execution)
    if cluster.device != "auto":
        settings["device"] = cluster.device
    settings |= {"keep": keep_of(execution), "final_checkpoint": None}
    arguments, gpus = {"execution": settings}, Gpus(cluster, execution)
    return [
        Work(
            name=name,
            folder=str(RunFolder.of(root.resolve(), name).path),
            entry="sweeps.training.entry:train",
            arguments=arguments,
            need=need_of(run, gpus),
            labels=labels_of(run),
            adapter=TRAINING,
        )
        for run, name in ((run, run.run_id) for run in runs)
    ]


def keep_of(execution: ExecutionConfig) -> Any:
    """Return the runs' `execution.keep`: none where nothing is said."""
    if execution.keep is None:
        return "final" if execution.final_checkpoint else "none"
    return execution.keep


def labels_of(run: RunConfig) -> dict[str, Any]:
    """What tells runs apart in tables and filters."""
    return {
        "algorithm": run.algorithm,
        "num_params": run.num_params,
        **({"model": run.model.label} if run.model.label else {}),
        "num_workers": run.num_workers,
        "global_batch_tokens": run.global_batch_tokens,
        "lr": run.inner_optimizer.lr,
        "tokens_per_parameter": run.tokens_per_parameter,
        "seed": run.seed,
    }


def need_of(run: RunConfig, gpus: Gpus) -> Need:
    """Nodes, GPUs and minutes of a run on their cluster."""
    allocation = gpus.allocation
    if allocation is None:
        return Need(wall_minutes=0.0, expected_minutes=expected_minutes(run, gpus.cluster, 1, "cpu"))
    number = gpus.number_of(run)
    per_node = min(number, allocation.gpus_per_node)
    minutes = expected_minutes(run, gpus.cluster, number, "cuda")
    cpus = max(1, allocation.cpus_per_node * per_node // allocation.gpus_per_node)
    return Need(number // per_node, per_node, cpus, 0.0, minutes, tasks_per_node=per_node)


def expected_minutes(run: RunConfig, cluster: ClusterConfig, processors: int, device: str) -> float:
    """A first guess from the run's FLOPs; finished runs refine it (`sweeps.engine.durations`)."""
    speed = _FIRST_GUESS[device]
    if cluster.tokens_per_second is not None:
        speed = 6e6 * cluster.tokens_per_second
    return _STARTUP_MINUTES * (device == "cuda") + run.flops / speed / processors / 60


def speed_of(cluster: ClusterConfig) -> str:
    """Return in words what first estimates of time are made of."""
    if cluster.tokens_per_second is not None:
        return f"at {cluster.tokens_per_second:,.0f} tokens/s of a model of a million parameters (tokens_per_second)"
    device = "cuda" if any(allocation.gpus_per_node for allocation in cluster.allocations) else "cpu"
    speed, what = _FIRST_GUESS[device], {"cuda": "GPU", "cpu": "core"}[device]
    return f"at {speed / 1e12:g} TFLOP/s a {what}, of 6ND (tokens_per_second in the cluster's file takes its place)"


def prepare(runs: Sequence[RunConfig], root: Path) -> None:
    """Makes the runs' folders. One that cannot be written raises `ConfigError`."""
    for run in runs:
        RunFolder.of(root, run.run_id).write_config(run.to_dict())
    record_code(runs, root, snapshot=True)


def train(folder: str, attempt: int, execution: Mapping[str, Any], memory_halvings: int = 0) -> int:
    """The entry of a training run, in its own process."""
    from muloco_runner.job import run_with_progress

    for name in _OF_AN_OUTER_TORCHRUN:
        os.environ.pop(name, None)
    settings = ExecutionConfig(**execution)
    settings.memory_halvings = memory_halvings
    return int(run_with_progress(RunFolder(folder), settings, attempt))


def preload(folder: str) -> None:
    """torch and the corpus, once for all runs of a slot: both take longer than a small run's first hundred steps."""
    from muloco_runner.job import preload_for

    preload_for(RunFolder(folder))
