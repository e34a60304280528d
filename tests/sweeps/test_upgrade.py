"""An upgrade in the middle of a sweep: jobs of the code before finish under the controller of today.

`old_sweep_files` is a sweep as that code left it: one run done, one held, one at work, one whose second attempt waits
for a slot or a node, one not tried. Its copy of the code holds stand-ins for the modules that jobs start, in the
protocol of their time; the definition, the ledger, the requests and the scripts are its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from emulated_slurm import PATIENCE_SECONDS, EmulatedSlurm, wait_for

from sweeps.clusters import make_cluster
from sweeps.controller import Controller, Tick
from sweeps.engine.policy import Cause
from sweeps.engine.sweep_state import SweepState
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder

FILES = Path(__file__).parent / "old_sweep_files"
CODE = "59712e2d21aa"
AT_WORK, PENDING = "sample-f53401-000004", "sample-f53401-000006"


@pytest.fixture
def old_sweep(tmp_path: Path) -> SweepFolder:
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            text = path.read_text().replace("@ROOT@", str(tmp_path)).replace("@PYTHON@", sys.executable)
            path.write_text(text)
    done = tmp_path / "runs" / "done"
    done.mkdir(parents=True)
    (done / "result.json").write_text("{}")
    folder = SweepFolder(tmp_path, "sample")
    for name in ("requests", "ended", "slots", "logs"):
        (folder.cluster_dir / name).mkdir()
    return folder


def give_request(folder: SweepFolder, tag: str) -> None:
    shutil.copy(folder.path / "jobs" / f"{tag}.json", folder.cluster_dir / "requests")


def launch_again(folder: SweepFolder, entry: str, **cluster: Any) -> SweepState:
    """The same sweep by the code of today, which names its work in its own way."""
    before = folder.read_definition()
    works = [replace(work, entry=entry, arguments={}) for work in before.works]
    definition = Definition("sample", before.cluster_name, {**before.cluster, **cluster}, works)
    folder.write_definition(definition)
    deadline = time.monotonic() + PATIENCE_SECONDS

    def on_tick(tick: Tick) -> None:
        assert time.monotonic() < deadline, tick.state.counts

    return Controller(folder, definition, make_cluster).run(on_tick)


def check(folder: SweepFolder, state: SweepState) -> None:
    causes = {name: [attempt.cause for attempt in run.attempts] for name, run in state.runs.items()}
    assert causes == {
        "done": [Cause.FINISHED],
        "held": [Cause.CONFIG_CANNOT_RUN],
        "large": [Cause.OUT_OF_MEMORY, Cause.FINISHED],
        "running": [Cause.FINISHED],
        "waiting": [Cause.FINISHED],
    }
    done_by_old_code = {path.parent.name: path.read_text() for path in folder.root.glob("runs/*/old")}
    assert done_by_old_code == {"running": "1 0\n", "large": "2 1\n"}


def test_the_state_is_read_as_it_was_left(old_sweep: SweepFolder) -> None:
    replay = old_sweep.read_state(old_sweep.read_definition())
    assert replay.damage == []
    standings = {name: run.status for name, run in replay.state.runs.items()}
    assert standings == {
        "done": "done", "held": "held", "large": "submitted", "running": "running", "waiting": "waiting",
    }  # fmt: skip
    assert {tag: job.request.code for tag, job in replay.state.jobs.items()} == dict.fromkeys(
        (AT_WORK, PENDING), str(old_sweep.root / "code" / CODE)
    )


def test_jobs_on_this_machine_finish(old_sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    code = str(old_sweep.root / "code" / CODE)
    give_request(old_sweep, AT_WORK)
    slot = f"from sweeps.clusters.local import serve_slot as s; s({str(old_sweep.cluster_dir)!r}, 0, None, 1, {code!r})"
    with subprocess.Popen([sys.executable, "-P", "-c", slot], env={**os.environ, "PYTHONPATH": code}) as process:
        taken = old_sweep.cluster_dir / "taken" / "0" / f"{AT_WORK}.json"
        wait_until(taken.exists)
        give_request(old_sweep, PENDING)
        state = launch_again(old_sweep, "sample_work:count")
        assert process.wait(timeout=PATIENCE_SECONDS) == 0
    check(old_sweep, state)


def wait_until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slurm
def test_jobs_of_slurm_finish(old_sweep: SweepFolder, slurm: EmulatedSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.configuration))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "cluster"))
    for tag, *options in ((AT_WORK,), (PENDING, "--hold")):
        give_request(old_sweep, tag)
        slurm.run("sbatch", *options, str(old_sweep.cluster_dir / "scripts" / f"{tag}.sh"))
    wait_for((old_sweep.root / "runs" / "running" / "old").exists, "the job at work")
    slurm.run("scontrol", "release", f"JobName={PENDING}")
    allocation = {"name": "here", "partition": "gpu", "account": "lab", "gpus_per_node": 8, "cpus_per_node": 8}
    check(old_sweep, launch_again(old_sweep, "cluster_work:count", kind="slurm", allocations=[allocation]))
