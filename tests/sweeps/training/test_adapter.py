"""What adapters tell the engine holds of the work that they stand for."""

import importlib
import inspect
from pathlib import Path

import pytest

from muloco_runner.record import RunFolder, RunStatus, StepRecord
from sweeps.engine.policy import RULES, Cause
from sweeps.engine.work import Adapter
from sweeps.hydra_apps.job_adapter import HYDRA_JOB
from sweeps.node.run_attempt import resolve_entry
from sweeps.training.adapter import TRAINING, losses_at, read_progress

ADAPTERS = {"sweeps.training.entry:train": TRAINING, "sweeps.hydra_apps.program:run": HYDRA_JOB}


@pytest.mark.parametrize("entry", ADAPTERS)
def test_adjustments_are_parameters_of_the_entry_and_have_a_cause(entry: str) -> None:
    for cause, parameter in ADAPTERS[entry].adjustments.items():
        assert RULES[Cause(cause)].adjusts
        assert parameter in inspect.signature(resolve_entry(entry)).parameters


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_an_empty_folder_reports_nothing(adapter: Adapter, tmp_path: Path) -> None:
    reports = importlib.import_module(adapter.reports)
    assert reports.read_progress(tmp_path) is None
    assert reports.measured_minutes(tmp_path) is None


def test_a_heartbeat_says_how_far_a_run_is_and_what_is_left(tmp_path: Path) -> None:
    status = RunStatus("r", "running", step=50, num_steps=200, tokens=5000, checkpoint_step=40, attempt=3)
    status.tokens_per_second, status.loss = 10.0, 2.5
    RunFolder(tmp_path).write_status(status)
    progress = read_progress(tmp_path)
    assert progress is not None
    assert (progress.attempt, progress.checkpoint_step, progress.share) == (3, 40, 0.25)
    assert progress.minutes_left == pytest.approx(160 * 100 / 10 / 60)
    assert progress.figures == {"loss": 2.5}
    assert progress.heartbeat_at == RunFolder(tmp_path).status_file.stat().st_mtime


def test_losses_at_shares_are_means_of_the_last_steps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(1, 81):
        folder.append_record(StepRecord(step, 10 * step, loss=float(step)))
    folder.write_status(RunStatus("id", "running", step=80, num_steps=100))
    # Of the steps 46 to 50, and 21 to 25; it has not come to its end.
    assert losses_at(tmp_path, ["0.25", "0.5", "1"]) == {"0.25": 23.0, "0.5": 48.0}
    # A loss that is not finite is no curve.
    folder.append_record(StepRecord(49, 490))
    assert losses_at(tmp_path, ["0.25", "0.5"]) == {"0.25": 23.0}
    assert losses_at(tmp_path / "nowhere", ["0.25"]) == {}


def test_sparse_logs_give_the_last_step_before_a_share(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 20, 40):
        folder.append_record(StepRecord(step, 10 * step, loss=float(step)))
    folder.write_status(RunStatus("id", "running", step=45, num_steps=100))
    assert losses_at(tmp_path, ["0.25"]) == {"0.25": 20.0}
    # Nothing is logged yet from there on.
    folder.write_status(RunStatus("id", "running", step=55, num_steps=100))
    assert losses_at(tmp_path, ["0.5"]) == {}
