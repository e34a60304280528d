"""A run that differs from another of its sweep in a few values: what a sweep adds by its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.record import RunFolder
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.work import Work
from sweeps.training.entry import prepare, works_of


def derived_work(like: Work, values: Mapping[str, Any], cluster: ClusterConfig) -> Work:
    """The same training run with other values of some keys, its folder written.

    It is expected to take as much longer than a first guess as the other does. Values that make no run, and runs that
    fit on no GPUs or end before what `execution` asks of their steps, raise `ConfigError`.
    """
    before = run_of(like)
    run = before.with_values(values)
    if run.algorithm != before.algorithm:
        raise ConfigError(f"{dict(values)} makes {run.algorithm} of {before.algorithm}, which is another series")
    root = Path(like.folder).parent.parent
    # Whatever the sweep decided for all its runs stands in their arguments.
    execution = ExecutionConfig(**like.arguments["execution"])
    _check_steps(run, execution)
    made, guess = works_of([run, before], root, execution, cluster)
    made = replace(made, arguments=like.arguments)
    prepare([run], root)
    longer = like.need.expected_minutes / guess.need.expected_minutes if guess.need.expected_minutes > 0 else 1.0
    return made.expecting(made.need.expected_minutes * longer)


def _check_steps(run: RunConfig, execution: ExecutionConfig) -> None:
    try:
        execution.check(run.num_steps)
    except ConfigError as error:
        raise ConfigError(
            f"a run of {run.num_steps} steps, with global_batch_tokens={run.global_batch_tokens}, is to be added: "
            f"{error}"
        ) from error


def run_of(work: Work) -> RunConfig:
    """The training run that a piece of work is, as its folder has it."""
    return RunConfig.from_dict(RunFolder(work.folder).read_config())
