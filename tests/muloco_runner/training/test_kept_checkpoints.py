"""`execution.keep`: which checkpoints of a run stay, whatever interrupts it; none of it names or changes the run."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.inference.load import load_run
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder, StepRecord
from muloco_runner.training.loop import Trainer

MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
OFTEN: dict[str, Any] = {"device": "cpu", "log_interval_steps": 1, "checkpoint_interval_seconds": 1e-3}


def trained(run: RunConfig, folder: RunFolder, **execution: Any) -> list[int]:
    assert run_job(folder, ExecutionConfig(**{**OFTEN, **execution})) is ExitCode.FINISHED
    return folder.checkpoint_steps()


def interrupted(step: int, folder: RunFolder, **execution: Any) -> None:
    """Train until just after this step, as a scheduler's signal would have it."""

    def stop(record: StepRecord) -> None:
        if record.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = ExecutionConfig(**{**OFTEN, **execution})
    assert run_job(folder, settings, on_record=stop) is ExitCode.WANTS_MORE_TIME


@pytest.mark.parametrize(
    ("execution", "left"),
    [
        ({"keep": "none"}, []),
        ({"keep": "best_of_sweep"}, [23]),
        ({"keep": [3, 11, 23]}, [3, 11, 23]),
        ({"keep": [4], "checkpoint_interval_seconds": 1e6}, [4]),
    ],
)
def test_a_finished_run_keeps_what_was_asked_for(
    execution: dict[str, Any], left: list[int], tiny_run: MakeRun, new_folder: MakeFolder
) -> None:
    run = tiny_run("diloco", num_workers=2)
    assert trained(run, new_folder(run), **execution) == left


def test_the_newest_n_are_kept(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    run = tiny_run(num_steps=60)
    left = trained(run, new_folder(run), keep="last_3")
    assert len(left) == 3
    assert left[-1] == 60


def test_the_newest_n_outlive_a_resume(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    run, seldom = tiny_run(num_steps=20), {"checkpoint_interval_seconds": 1e6}
    folder = new_folder(run)
    interrupted(12, folder, keep=list(range(1, 13)), **seldom)
    before = folder.checkpoint_steps()
    assert len(before) >= 12
    assert trained(run, folder, keep="last_12", **seldom) == [*before, 20][-12:]


@pytest.mark.parametrize(("stops", "besides"), [([], []), ([9], [6, 20]), ([13, 14, 21], [])])
def test_the_best_evaluation_is_kept_whatever_interrupts(
    stops: list[int],
    besides: list[int],
    tiny_run: MakeRun,
    new_folder: MakeFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = {4: 3.0, 8: 2.0, 12: 1.0, 16: 1.5, 20: 1.25, 24: 1.125}
    monkeypatch.setattr(Trainer, "_evaluate", lambda trainer: losses[trainer.state.step])
    run = tiny_run(num_steps=24)
    folder, asks = new_folder(run), {"keep": "best", "evaluate_interval_steps": 4, "branch_steps": besides}
    for step in stops:
        interrupted(step, folder, **asks)
    left = sorted([12, *besides])
    assert trained(run, folder, **asks) == left
    assert load_run(folder.path).step == left[-1]


def test_a_step_that_was_passed_unkept_is_named(
    tiny_run: MakeRun, new_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run()
    folder = new_folder(run)
    interrupted(9, folder, checkpoint_interval_seconds=1e6)
    capsys.readouterr()
    assert trained(run, folder, keep=[5, 12], checkpoint_interval_seconds=1e6) == [12]
    assert "no checkpoint of step 5 was written, and the run is past it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        ({"keep": "newest"}, "must be none, final, best, best_of_sweep, last_N"),
        ({"keep": "last_0"}, "must be none"),
        ({"keep": []}, "must be none"),
        ({"keep": [0]}, "must be none"),
        ({"keep": [True]}, "must be none"),
        ({"keep": "best"}, "set execution.evaluate_interval_steps"),
        ({"keep": "final", "final_checkpoint": True}, "earlier name"),
    ],
)
def test_what_cannot_be_kept_is_refused(execution: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ExecutionConfig(**execution)


def test_a_step_beyond_the_end_is_refused(
    tiny_run: MakeRun, new_folder: MakeFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run()
    assert run_job(new_folder(run), ExecutionConfig(device="cpu", keep=[24])) is ExitCode.CONFIG_CANNOT_RUN
    assert "step 24 is beyond the end of a run of 23 steps" in capfd.readouterr().err
