"""The controller on a real SLURM: quotas, adoption, honest causes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from emulated_slurm import EmulatedSlurm, wait_for

from sweeps.clusters.slurm import SlurmCluster
from sweeps.controller import Controller
from sweeps.definition import Definition
from sweeps.folder import SweepFolder
from sweeps.policy import Cause
from sweeps.state import SweepState
from sweeps.work import Need, Work

pytestmark = pytest.mark.slurm
SAMPLES = Path(__file__).parent.parent / "sweeps"


def controller_of(root: Path, plans: dict[str, dict[str, Any]], nodes: int = 2) -> Controller:
    need = Need(1, 1, 1, wall_minutes=5, expected_minutes=0.1)
    works = [Work(name, str(root / "runs" / name), "sample_work:count", plan, need) for name, plan in plans.items()]
    cluster = {
        "kind": "slurm",
        "tick_seconds": 0.3,
        "allocations": [
            {"name": "gpu", "partition": "gpu", "gpus_per_node": 8, "cpus_per_node": 8, "quota": {"nodes": nodes}}
        ],
    }
    folder = SweepFolder(root, "sample")
    definition = Definition("sample", "test", cluster, works)
    folder.write_definition(definition)
    return Controller(folder, definition, SlurmCluster)


def starts(root: Path, name: str) -> int:
    return len((root / "runs" / name / "started").read_text().splitlines())


def words(state: SweepState) -> dict[str, str]:
    return {name: run.standing for name, run in state.runs.items()}


def test_a_sweep_keeps_its_quota_of_nodes_and_ends(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    plans: dict[str, dict[str, Any]] = {f"w{n}": {"seconds": 1.0} for n in range(6)}
    most = 0

    def count(tick: Any) -> None:
        nonlocal most
        most = max(most, len(slurm.run("squeue", "-h", "-t", "PD,R", "-o", "%i").split()))

    state = controller_of(tmp_path, plans).run(count)
    assert set(words(state).values()) == {"done"}
    assert {starts(tmp_path, name) for name in plans} == {1}
    assert most == 2


def test_a_killed_controllers_jobs_are_adopted(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    plans: dict[str, dict[str, Any]] = {f"w{n}": {"seconds": 4.0} for n in range(2)}
    here = Path(__file__).parent
    script = (
        f"import sys; sys.path[:0] = [{str(here)!r}, {str(SAMPLES)!r}]; from pathlib import Path; "
        f"import test_slurm_cluster as t; t.controller_of(Path({str(tmp_path)!r}), {plans!r}).run()"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    wait_for((tmp_path / "runs" / "w0" / "started").exists, 60, "first job")
    process.kill()
    process.wait()
    ledger = tmp_path / "sweeps" / "sample" / "ledger.jsonl"
    # As if it had died between the scheduler's yes and its own note of it.
    kept = [line for line in ledger.read_text().splitlines(keepends=True) if '"submitted"' not in line]
    ledger.write_text("".join(kept))
    state = controller_of(tmp_path, plans).run()
    assert set(words(state).values()) == {"done"}
    assert {name: starts(tmp_path, name) for name in plans} == dict.fromkeys(plans, 1)


def test_causes_are_true_and_accounting_agrees(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    state = controller_of(tmp_path, {"wrong": {"codes": [65]}, "large": {"codes": [70, 0]}, "fine": {}}).run()
    assert words(state) == {"wrong": "held", "large": "done", "fine": "done"}
    causes = {name: [attempt.cause for attempt in run.attempts] for name, run in state.runs.items()}
    assert causes["wrong"] == [Cause.CONFIG_CANNOT_RUN]
    assert causes["large"] == [Cause.OUT_OF_MEMORY, Cause.FINISHED]
    time.sleep(3)  # accounting lags
    told = slurm.run("sacct", "-nPX", "-o", "JobName,State,ExitCode").splitlines()
    ours = [line.split("|")[1:] for line in told if line.startswith("sample-")]
    assert sorted(map(tuple, ours))[-2:] == [("FAILED", "65:0"), ("FAILED", "70:0")]
