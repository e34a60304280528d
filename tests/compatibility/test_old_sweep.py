"""A sweep that an earlier version left in the middle: looked at, and continued by today's controller."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from old_files import Old

from muloco_runner.record import RunFolder
from sweeps.store.folder import SweepFolder


@pytest.fixture
def sweep(old: Old) -> Iterator[SweepFolder]:
    """Whatever a test leaves running is ended with it."""
    yield SweepFolder(old.root / "sweep", old.sweep.name)
    for process in psutil.process_iter(["cmdline"]):
        if any(str(old.root) in word for word in process.info["cmdline"] or ()):
            process.kill()


def command(*words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", *words],
        capture_output=True, text=True, check=False, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def standings(root: Path) -> dict[str, str]:
    said: dict[str, Any] = json.loads(command("status", str(root), "--json"))
    return {run["run"]: run["standing"] for run in said["runs"]}


@pytest.mark.parametrize("snapshot", [True, False])
def test_it_stands_where_it_stood(snapshot: bool, old: Old, sweep: SweepFolder) -> None:
    if not snapshot:
        sweep.snapshot_file.unlink()
    replay = sweep.read_state(sweep.read_definition())
    assert replay.damage == []
    # The snapshot is believed: only what came after it is replayed.
    assert replay.num_events == (1 if snapshot else len(sweep.ledger_file.read_text().splitlines()))
    assert {name: run.status for name, run in replay.state.runs.items()} == old.expected["standings"]
    assert {word: count for word, count in replay.state.counts.items() if count} == old.expected["counts"]
    sweep.snapshot_file.unlink(missing_ok=True)
    assert replay.state.counters == sweep.read_state(sweep.read_definition()).state.counters
    running = replay.state.runs[old.expected["interrupted"]]
    (attempt,) = running.attempts
    assert attempt.started_at is not None
    request = replay.state.jobs[attempt.tag].request
    assert request.attempts[0].work.name == old.expected["interrupted"]


@pytest.mark.thorough
def test_it_is_continued_and_nothing_is_trained_twice(old: Old, sweep: SweepFolder) -> None:
    """The job that was pending is run, the killed run goes on from its checkpoint, the run held by hand stays held."""
    root = sweep.root
    before = old.expected["standings"]
    results = {path: path.read_bytes() for path in root.glob("runs/*/result.json")}
    # Run after run is done; one that is held is told by the exit code.
    command("launch", *old.expected["launch"], code=1)
    assert standings(root) == {run: "held" if word == "held" else "done" for run, word in before.items()}
    assert {path: path.read_bytes() for path in results} == results
    attempts = {run: len(list((root / "runs" / run / "attempts").glob("[0-9]*"))) for run in before}
    assert attempts == {run: {"running": 2, "held": 0}.get(word, 1) for run, word in before.items()}
    (submitted,) = (run for run, word in before.items() if word == "submitted")
    # By the job that the old code had asked for.
    assert (root / "runs" / submitted / "attempts" / "1" / "ending.json").exists()

    interrupted = old.expected["interrupted"]
    folder, whole = RunFolder(root / "runs" / interrupted), RunFolder(old.root / "whole" / "runs" / interrupted)
    again = [step for step in folder.read_steps() if step.attempt == 2]
    assert again[0].step > old.expected["checkpoint_step"]
    then = {step.step: step.loss for step in whole.read_steps()}
    assert [step.loss for step in again] == old.same([then[step.step] for step in again])
    result, expected = folder.read_result(), whole.read_result()
    assert result is not None
    assert expected is not None
    assert [result.validation_loss, result.train_loss] == old.same([expected.validation_loss, expected.train_loss])
