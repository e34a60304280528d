"""One attempt as a process: signals, kills, locks and exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import JOB, ForkedProcess, SignalAt

from muloco_runner.config import DataConfig, ExecutionConfig, RunConfig
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder

MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]


def start(folder: RunFolder, attempt: int = 1, signal_at: SignalAt | None = None, **execution: object) -> ForkedProcess:
    settings = json.dumps({"device": "cpu", "log_interval_steps": 1, "checkpoint_interval_seconds": 0.05, **execution})
    words = [str(folder.path), "--attempt", str(attempt), "--execution", settings]
    return ForkedProcess(JOB, words, signal_at=signal_at)


def wait_for_step(folder: RunFolder, step: int) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if folder.record_file.exists() and folder.record_file.read_text().count('"step"') >= step:
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


def newest_parameters(folder: RunFolder) -> dict[str, torch.Tensor]:
    newest = sorted(folder.checkpoint_dir.glob("step-*"))[-1]
    return torch.load(newest / "worker-0.pt", weights_only=True)["model"]


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig
) -> None:
    run = tiny_run("diloco", "muon", num_workers=2, num_steps=60)
    whole, cut = new_folder(run, "whole"), new_folder(run, "cut")
    assert run_job(whole, execution) is ExitCode.FINISHED
    for attempt, step in ((1, 15), (2, 40)):
        killed = start(cut, attempt, SignalAt(signal.SIGKILL, step))
        assert killed.wait() == -signal.SIGKILL
        assert cut.read_result() is None
    assert start(cut, 3).wait() == ExitCode.FINISHED
    expected, result = whole.read_result(), cut.read_result()
    assert expected is not None
    assert result is not None
    assert result.validation_loss == expected.validation_loss
    assert [s.loss for s in cut.read_steps()] == [s.loss for s in whole.read_steps()]
    assert result.attempts == 3


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_leaves_a_checkpoint_and_asks_for_more_time(
    number: signal.Signals, tiny_run: MakeRun, new_folder: MakeFolder
) -> None:
    folder = new_folder(tiny_run(num_steps=3000))
    process = start(folder, signal_at=SignalAt(number, 10), checkpoint_interval_seconds=1000.0)
    assert process.wait() == ExitCode.WANTS_MORE_TIME
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("stopped", 75)
    assert status.checkpoint_step == status.step >= 10


def test_the_deadline_is_kept(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    folder = new_folder(tiny_run(num_steps=100_000))
    assert run_job(folder, ExecutionConfig(device="cpu", wall_minutes=0.02)) is ExitCode.WANTS_MORE_TIME
    assert list(folder.checkpoint_dir.glob("step-*"))


def test_an_attempt_says_once_what_it_runs_with(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    folder = new_folder(tiny_run())
    folder.write_environment(2, {"code": "written by whoever started it"})
    for attempt in (1, 2):
        run_job(folder, ExecutionConfig(device="cpu", wall_minutes=0.001), attempt)
    first, second = (json.loads((folder.attempt_dir(n) / "environment.json").read_text()) for n in (1, 2))
    assert first["num_tasks"] == 1
    assert "torch" in first["packages"]
    assert second == {"code": "written by whoever started it"}


def test_two_processes_never_train_one_run(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    folder = new_folder(tiny_run(num_steps=100_000))
    first = start(folder)
    wait_for_step(folder, 5)
    second = start(folder, 2)
    assert second.wait() == ExitCode.CRASH
    message = second.errors()
    assert "another process is training this run" in message
    assert len(message.splitlines()) == 1
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert first.wait() == ExitCode.WANTS_MORE_TIME


def test_a_finished_run_is_left_as_it_is(tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig) -> None:
    folder = new_folder(tiny_run())
    run_job(folder, execution)
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file()}
    assert run_job(folder, execution, attempt=2) is ExitCode.FINISHED
    assert before == {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file()}


def test_records_hold_the_learning_rate_and_older_ones_are_read(
    tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig
) -> None:
    run = tiny_run(num_steps=20)  # two steps of warm-up
    folder = new_folder(run)
    run_job(folder, execution)
    steps = folder.read_steps()
    assert [step.scheduled_lr for step in steps[:2]] == [run.inner_optimizer.lr / 2, run.inner_optimizer.lr]
    folder.record_file.write_text(folder.record_file.read_text().replace('"scheduled_lr":', '"lr":'))
    assert folder.read_steps() == steps


def test_other_data_under_the_same_path_is_refused(
    tmp_path: Path, tiny_run: MakeRun, new_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {n} of a text." * 9 for n in range(60)))
    run = tiny_run(num_steps=3000, data=DataConfig("text", str(text), validation_fraction=0.2, validation_tokens=64))
    folder = new_folder(run)
    stopped = run_job(folder, ExecutionConfig(device="cpu", wall_minutes=0.001))
    assert stopped is ExitCode.WANTS_MORE_TIME
    text.write_text(text.read_text().replace("text", "book"))
    command = [sys.executable, "-m", "muloco_runner.job", str(folder.path), "--attempt", "2"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    message = process.stderr
    assert process.returncode == ExitCode.CONFIG_CANNOT_RUN
    assert "was started on data" in message
    assert len(message.splitlines()) == 1
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 65)


def test_a_crash_leaves_its_cause(
    tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_folder(tiny_run())

    def fail(*args: object) -> None:
        raise ValueError("no\nsuch thing")

    monkeypatch.setattr("muloco_runner.training.loop.Trainer.step_workers", fail)
    assert run_job(folder, execution) is ExitCode.CRASH
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 1)
    assert status.exit_cause is not None
    assert status.exit_cause.startswith("ValueError: no such thing (test_job.py:")


def test_memory_that_cannot_be_had_has_its_own_exit_code(
    tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_folder(tiny_run())
    monkeypatch.setattr(
        "muloco_runner.training.loop.Trainer.step_workers", lambda self: torch.empty(2**62, dtype=torch.uint8)
    )
    assert run_job(folder, execution) is ExitCode.OUT_OF_MEMORY


def test_a_folder_that_holds_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job(RunFolder(tmp_path / "nothing"), ExecutionConfig()) is ExitCode.CONFIG_CANNOT_RUN
    assert capsys.readouterr().err.count("\n") == 1
    assert not os.listdir(tmp_path)
