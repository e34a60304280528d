"""What a run shows beside its record: a trace of steps, and TensorBoard's files."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder
from muloco_runner.training.sinks.tensorboard_sink import tensorboard_sink

MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]


def test_a_trace_holds_the_steps_asked_for(
    tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig
) -> None:
    run = tiny_run("diloco", num_steps=8)
    plain, traced = new_folder(run, "plain"), new_folder(run, "traced")
    assert run_job(plain, execution) is ExitCode.FINISHED
    assert run_job(traced, replace(execution, profile=[3, 4])) is ExitCode.FINISHED
    assert [one.loss for one in traced.read_steps()] == [one.loss for one in plain.read_steps()]
    events = json.loads((traced.attempt_dir(1) / "trace-0.json").read_text())["traceEvents"]
    steps = [event for event in events if str(event.get("name", "")).startswith("Optimizer.step#AdamW.step")]
    assert len(steps) == 2
    with pytest.raises(ConfigError, match="first and the last step of a trace"):
        replace(execution, profile=[4, 3])


def test_a_trace_ends_with_its_run(tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig) -> None:
    run = tiny_run(num_steps=8)
    folder = new_folder(run)
    assert run_job(folder, replace(execution, profile=[7, 20])) is ExitCode.FINISHED
    events = json.loads((folder.attempt_dir(1) / "trace-0.json").read_text())["traceEvents"]
    assert len([event for event in events if str(event.get("name", "")).startswith("Optimizer.step#AdamW.step")]) == 2
    with pytest.raises(ConfigError, match="begins beyond the end of a run of 8 steps"):
        replace(execution, profile=[9, 20]).check(run.num_steps)


def test_tensorboard_gets_every_record(
    tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = new_folder(tiny_run(num_steps=8))
    code = run_job(folder, replace(execution, tensorboard=True))
    if code is ExitCode.CONFIG_CANNOT_RUN:
        # Nothing is trained that would not be shown as asked.
        assert "pip install 'muloco-sweeps[tensorboard]'" in capfd.readouterr().err
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder.path / "tensorboard"))
    shown.Reload()
    assert [(one.step, one.value) for one in shown.Scalars("loss")] == [
        (record.step, pytest.approx(record.loss)) for record in folder.read_steps()
    ]


def test_without_a_folder_nothing_is_written() -> None:
    with tensorboard_sink(None) as write:
        write(None)  # type: ignore[arg-type]
