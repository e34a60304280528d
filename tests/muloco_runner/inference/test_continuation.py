"""A run that goes on, or is decayed earlier, ends to the bit as the run of its budget that was asked for at once."""

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from muloco_runner.config import ConfigError, CosineConfig, ExecutionConfig, RunConfig, WarmupStableDecayConfig
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.inference.command import main
from muloco_runner.inference.continuation import _chosen_step, prepare_continuation
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder
from muloco_runner.training.checkpoints.store import CheckpointStore
from muloco_runner.training.learning_rate import lr_fraction

MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
IN_STEPS = WarmupStableDecayConfig(warmup_steps=4, max_warmup_fraction=1.0, decay_steps=6)
IN_SHARES = WarmupStableDecayConfig(warmup_steps=4, max_warmup_fraction=1.0, decay_fraction=0.25)
CPU = ExecutionConfig(device="cpu", log_interval_steps=1, keep=[14])


def state_of(folder: RunFolder, num_workers: int) -> dict[str, Any]:
    found = CheckpointStore(folder.checkpoint_dir, Communicator(Topology(num_workers))).load(range(num_workers))
    assert found is not None
    shared = {key: value for key, value in found.shared.items() if key not in ("train_seconds", "started_at")}
    return {"step": found.step, "shared": shared, "workers": found.workers}


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [item for key in value for item in (key, *flat(value[key]))]
    return [item for one in value for item in flat(one)] if isinstance(value, list | tuple) else [value]


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(flat(found), flat(expected), strict=True):
        assert torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other


def assert_ends_as(found: RunFolder, expected: RunFolder) -> None:
    workers = RunConfig.from_dict(expected.read_config()).num_workers
    assert_same(state_of(found, workers), state_of(expected, workers))
    results = [folder.read_result() for folder in (found, expected)]
    one, other = ((r.validation_loss, r.train_loss, r.num_tokens) for r in results if r is not None)
    assert one == other
    assert [step.loss for step in found.read_steps()] == [step.loss for step in expected.read_steps()]


METHODS = [{"optimizer": "muon"}, {"method": "diloco", "num_workers": 2}, {"method": "diloco", "optimizer": "muon"}]
COMBINED = list(itertools.product(METHODS, [IN_STEPS, IN_SHARES]))
FEW = COMBINED[3:5]


@pytest.mark.parametrize(
    ("method", "schedule"),
    [*FEW, *(pytest.param(*one, marks=pytest.mark.thorough) for one in COMBINED if one not in FEW)],
)
def test_a_continued_run_is_the_longer_run(
    method: dict[str, Any],
    schedule: WarmupStableDecayConfig,
    tiny_run: MakeRun,
    new_folder: MakeFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short, long = (tiny_run(schedule=schedule, num_steps=steps, **method) for steps in (23, 36))
    parent, at_once = new_folder(short), new_folder(long, "at_once")
    assert run_job(parent, replace(CPU, keep="final", branch_steps=[14])) is ExitCode.FINISHED
    assert run_job(at_once, replace(CPU, keep="final", branch_steps=[18])) is ExitCode.FINISHED
    assert (parent.checkpoint_steps(), at_once.checkpoint_steps()) == ([14, 23], [18, 36])
    words = ["continue", str(parent.path), "--tokens-per-parameter", repr(long.tokens_per_parameter)]
    monkeypatch.setattr(
        sys,
        "argv",
        ["muloco-model", *words, "--set", "execution.log_interval_steps=1", "--set", "execution.keep=final"],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    child = RunFolder.of(tmp_path / "root", long.run_id)
    assert child.read_parent() == (short.run_id, 14)
    assert_ends_as(child, at_once)
    earlier = prepare_continuation(at_once, short.tokens_per_parameter)
    assert earlier.read_parent() == (long.run_id, 18)
    assert run_job(earlier, replace(CPU, keep="final")) is ExitCode.FINISHED
    assert_ends_as(earlier, parent)
    assert (parent.checkpoint_steps(), at_once.checkpoint_steps()) == ([14, 23], [18, 36])


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["--set", "execution.device=cuda"], "say --device cuda"),
        (["--set", "seed=1"], "only execution.KEY=VALUE"),
        (["--worker", "0"], "takes all workers"),
        (["--only-prepare", "--set", "execution.keep=final"], "no effect with --only-prepare"),
    ],
)
def test_what_a_continuation_cannot_follow_is_refused(
    words: list[str], refusal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["muloco-model", "continue", "3fa", "--tokens-per-parameter", "40", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitCode.USAGE
    assert refusal in capsys.readouterr().err


def test_a_run_goes_on_only_where_the_longer_one_would_have_been(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    def refused(run: RunConfig, budget: float, step: int | None = None, **execution: Any) -> str:
        folder = new_folder(run)
        assert run_job(folder, replace(CPU, **execution)) is ExitCode.FINISHED
        with pytest.raises(ConfigError) as refusal:
            prepare_continuation(folder, budget, step)
        assert len(list(folder.path.parent.iterdir())) == len({run.run_id for run in tried})
        return str(refusal.value)

    tried: list[RunConfig] = []

    def make(**changes: Any) -> RunConfig:
        tried.append(tiny_run(num_steps=23, **changes))
        return tried[-1]

    run = make(schedule=IN_STEPS)
    budget = 2 * run.tokens_per_parameter
    assert "give another budget" in refused(run, run.tokens_per_parameter)
    assert "a run of 11 steps would have come to none" in refused(run, 11 / 23 * run.tokens_per_parameter)
    cosine = refused(make(schedule=CosineConfig(warmup_steps=4, max_warmup_fraction=1.0)), budget)
    assert "up to step 5 the learning rates are equal: train with schedule=wsd" in cosine
    assert "set schedule.max_warmup_fraction=1" in refused(make(schedule=WarmupStableDecayConfig()), budget)
    decayed = refused(make(schedule=IN_STEPS, seed=1), budget, keep="final")
    assert "checkpoints are of step 23" in decayed
    assert "execution.keep=[18]" in decayed
    assert "were not kept" in refused(make(schedule=IN_STEPS, seed=2), budget, keep="none")
    assert "(3 was asked for)" in refused(make(schedule=IN_STEPS, seed=3), budget, 3)


def test_a_continuation_is_refused_before_its_folder_is_made(
    tiny_run: MakeRun, new_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*words: str) -> tuple[object, str]:
        budget = repr(2 * run.tokens_per_parameter)
        command = ["muloco-model", "continue", str(folder.path), "--tokens-per-parameter", budget, *words]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    run = tiny_run(schedule=IN_STEPS, num_steps=23)
    folder = new_folder(run)
    assert run_job(folder, CPU) is ExitCode.FINISHED
    code, said = say("--set", "execution.keep=[9999]")
    assert (code, len(list(folder.path.parent.iterdir()))) == (2, 1)
    assert "step 9999 is beyond the end of a run of 46 steps" in said
    if not torch.cuda.is_available():
        code, said = say("--device", "cuda")
        assert (code, len(list(folder.path.parent.iterdir()))) == (2, 1)
        assert "torch finds no GPU here" in said
    assert say("--only-prepare")[0] == 0
    assert say("--only-prepare", "--step", "14")[0] == 0
    code, said = say("--only-prepare", "--step", "13")
    assert code == 2
    assert f"has begun from step 14 of {run.run_id}, not from step 13" in said


def test_a_budget_that_no_checkpoint_serves_is_called_so(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    parent, other = (tiny_run(schedule=IN_SHARES, num_steps=steps) for steps in (23, 1))
    folder = new_folder(parent)
    folder.checkpoint_at(14).mkdir(parents=True)
    with pytest.raises(ConfigError, match="no checkpoint can serve: give a larger budget"):
        _chosen_step(folder, parent, other, None)


def test_decay_is_given_in_steps_or_as_a_share(tiny_run: MakeRun) -> None:
    run = tiny_run(schedule=IN_STEPS, num_steps=23)
    rates = [lr_fraction(run, step) for step in range(23)]
    assert run.schedule.stable_until(23) == 18
    assert CosineConfig().stable_until(23) is None
    assert rates[3:18] == [1.0] * 15
    assert rates[18] < 1.0
    assert rates[-1] == pytest.approx(0.1 + 0.9 / 6)
    assert "decay_steps" not in tiny_run(schedule=IN_SHARES).to_dict()["schedule"]
    with pytest.raises(ConfigError, match="give one"):
        WarmupStableDecayConfig(decay_steps=5, decay_fraction=0.3)
    with pytest.raises(ConfigError, match="decay_steps=0"):
        WarmupStableDecayConfig(decay_steps=0)
    with pytest.raises(ConfigError, match="longer than the run of 23 steps"):
        tiny_run(schedule=WarmupStableDecayConfig(decay_steps=24), num_steps=23)
