"""Sweeps of light work on this machine's slots."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from sweeps.clusters.local import LocalCluster
from sweeps.controller import Controller
from sweeps.engine import policy
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.policy import Cause, Rule
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Need, Work
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.training.adapter import TRAINING

HERE = Path(__file__).parents[1]
"""Where `sample_work` is."""
CLUSTER = {"kind": "local", "tick_seconds": 0.05, "allocations": [{"name": "here", "quota": {"jobs": 2}}]}


def works(root: Path, plans: dict[str, dict[str, Any]]) -> list[Work]:
    need = Need(expected_minutes=0.1)
    return [
        Work(
            name, str(root / "runs" / name), "sample_work:count", plan, need, {"algorithm": "sample"}, adapter=TRAINING
        )
        for name, plan in plans.items()
    ]


def make(config: ClusterConfig, folder: Path) -> LocalCluster:
    return LocalCluster(folder, config.allocations[0].quota.jobs or 1)


def controller_of(root: Path, plans: dict[str, dict[str, Any]]) -> Controller:
    folder = SweepFolder(root, "sample")
    definition = Definition("sample", "local", CLUSTER, works(root, plans))
    folder.write_definition(definition)
    return Controller(folder, definition, make)


def run_sweep(root: Path, plans: dict[str, dict[str, Any]]) -> SweepState:
    return controller_of(root, plans).run()


def starts(root: Path, name: str) -> int:
    return len((root / "runs" / name / "started").read_text().splitlines())


def words(state: SweepState) -> dict[str, str]:
    return {name: run.status for name, run in state.runs.items()}


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def rules_without_backoff() -> dict[Cause, Rule]:
    return {cause: dataclasses.replace(rule, backoff_seconds=0.0) for cause, rule in policy.RULES.items()}
