"""Whole runs: what must come out the same, and what must be refused."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from muloco_runner.config import AdamWConfig, ExecutionConfig, MuonConfig, OuterSgdConfig, RunConfig
from muloco_runner.data.batches import validation_batch
from muloco_runner.data.corpus import load_corpus
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.job import run_job
from muloco_runner.model.transformer import build_model
from muloco_runner.optimizers import Muon
from muloco_runner.record import ExitCode, RunFolder
from muloco_runner.training.checkpoints.store import CheckpointStore
from muloco_runner.training.evaluate import evaluate
from muloco_runner.training.loop import Trainer
from muloco_runner.training.session import Session

ALGORITHMS = [(m, i) for m in ("data_parallel", "diloco") for i in ("adamw", "muon")]
CPU = torch.device("cpu")
MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]


def trainer_of(run: RunConfig, folder: RunFolder, execution: ExecutionConfig, **session: Any) -> Trainer:
    communicator = Communicator(Topology(run.num_workers))
    return Trainer(run, load_corpus(run.data), Session(folder, execution, communicator, CPU, **session))


def final_parameters(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for w in trainer.state.workers for p in w.tensors])


@pytest.mark.parametrize(
    ("method", "inner_optimizer", "num_workers"),
    [(m, i, k) for m, i in ALGORITHMS for k in (1, 2, 4) if m == "diloco" or k == 1],
)
def test_every_algorithm_learns(
    method: str,
    inner_optimizer: str,
    num_workers: int,
    tiny_run: MakeRun,
    new_folder: MakeFolder,
    execution: ExecutionConfig,
) -> None:
    run = tiny_run(method, inner_optimizer, num_workers=num_workers, num_steps=60)
    folder = new_folder(run)
    assert run_job(folder, execution) is ExitCode.FINISHED
    result, steps = folder.read_result(), folder.read_steps()
    assert result is not None
    assert result.validation_loss is not None
    assert result.validation_loss < steps[0].loss - 1
    assert [step.step for step in steps] == list(range(1, 61))
    assert (result.num_steps, result.num_tokens) == (60, 60 * 256)
    # Data parallel sends the gradient each step, DiLoCo the pseudogradient each fifth: both as float32.
    syncs = 60 if method == "data_parallel" else 12
    stated = {"data_parallel": 0, "diloco": 0.02 * num_workers}[method]  # share of a payload that describes it
    assert syncs * 4 * run.num_params <= result.bytes_sent <= syncs * 4 * run.num_params * (1 + stated)
    assert (result.local_validation_loss is None) == (method == "data_parallel")


@pytest.mark.parametrize("inner_optimizer", ["adamw", "muon"])
def test_diloco_of_one_worker_and_lr_one_is_data_parallel(
    inner_optimizer: str, tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig
) -> None:
    plain = OuterSgdConfig(lr=1.0, momentum=0.0)
    runs = [tiny_run("data_parallel", inner_optimizer), tiny_run("diloco", inner_optimizer, outer_optimizer=plain)]
    losses = []
    for run in runs:
        folder = new_folder(run)
        run_job(folder, execution)
        losses.append([step.loss for step in folder.read_steps()])
    # anchor - (anchor - theta) is theta up to one rounding.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(("method", "inner_optimizer"), ALGORITHMS)
@pytest.mark.parametrize("stop_at", [10, 12])  # right after an outer step, and between two
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(
    method: str, inner_optimizer: str, stop_at: int, tiny_run: MakeRun, new_folder: MakeFolder
) -> None:
    run = tiny_run(method, inner_optimizer, num_workers=2)
    execution = ExecutionConfig(device="cpu", log_interval_steps=1)
    whole_folder, cut_folder = new_folder(run, "whole"), new_folder(run, "cut")
    whole = trainer_of(run, whole_folder, execution)
    expected = whole.train()
    first = trainer_of(run, cut_folder, execution, should_stop=lambda: first.state.step >= stop_at)
    assert first.train() is None
    assert first.state.step == stop_at
    second = trainer_of(run, cut_folder, execution, attempt=2)
    result = second.train()
    assert expected is not None
    assert result is not None
    assert result.validation_loss == expected.validation_loss
    assert result.train_loss == expected.train_loss
    assert result.bytes_sent == expected.bytes_sent
    assert torch.equal(final_parameters(second), final_parameters(whole))
    assert [s.loss for s in cut_folder.read_steps()] == [s.loss for s in whole_folder.read_steps()]


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_the_micro_batch_does_not_change_the_run(
    micro_batch: int, tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig
) -> None:
    run = tiny_run("diloco", "muon")
    losses = []
    for number, sequences in enumerate((None, micro_batch)):
        folder = new_folder(run, str(number))
        run_job(folder, dataclasses.replace(execution, micro_batch_sequences=sequences))
        losses.append([step.loss for step in folder.read_steps()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_step_scales_gradients_as_a_pass_over_them_does(
    tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of a GPU apply the factor of clipping; here the buckets do, told to be such kernels."""
    run = tiny_run("data_parallel", "muon", num_steps=3, gradient_clip_norm=0.01)
    found = []
    for in_kernels in (False, True):
        monkeypatch.setattr(Muon, "scales_in_kernels", in_kernels)
        trainer = trainer_of(run, new_folder(run, str(in_kernels)), execution)
        for _ in range(run.num_steps):
            trainer.step_workers()
        assert trainer.state.gradient_norms.min() > 0.01
        found.append(final_parameters(trainer))
    assert torch.equal(*found)
    monkeypatch.setattr(Muon, "scale_gradients", lambda *_: None)
    trainer = trainer_of(run, new_folder(run, "unscaled"), execution)
    for _ in range(run.num_steps):
        trainer.step_workers()
    assert not torch.equal(final_parameters(trainer), found[0])


def test_a_diverged_run_is_a_result(tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig) -> None:
    run = tiny_run("data_parallel", "muon", inner_optimizer=MuonConfig(lr=1e30))
    folder = new_folder(run)
    assert run_job(folder, execution) is ExitCode.FINISHED
    result = folder.read_result()
    assert result is not None
    assert result.diverged
    assert result.divergence is not None
    assert "training loss" in result.divergence
    assert result.validation_loss is None
    assert result.num_steps < run.num_steps


def test_a_run_that_ends_far_above_its_first_loss_diverged(
    tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig
) -> None:
    """Finite, and too short for fifty steps in a row."""
    run = tiny_run(inner_optimizer=AdamWConfig(lr=100.0), num_steps=12)
    folder = new_folder(run)
    assert run_job(folder, execution) is ExitCode.FINISHED
    result = folder.read_result()
    assert result is not None
    assert math.isfinite(float(result.train_loss or math.nan))
    assert result.diverged
    assert result.validation_loss is None
    assert "above 1.5 times the first training loss" in str(result.divergence)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_result_is_the_synchronised_model_at_the_budgets_end(
    num_workers: int, tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig
) -> None:
    # 23 steps: the last outer step, after 3 inner ones, belongs to the budget.
    run = tiny_run("diloco", "muon", num_workers=num_workers, num_steps=23, sync_interval=5)
    folder = new_folder(run)
    run_job(folder, execution)
    result = folder.read_result()
    communicator = Communicator(Topology(num_workers))
    last = CheckpointStore(folder.checkpoint_dir, communicator).load(range(num_workers))
    assert result is not None
    assert last is not None
    assert (last.step, result.num_tokens) == (23, 23 * 256)
    batch = validation_batch(load_corpus(run.data), run, CPU)
    for worker in last.workers.values():
        model = build_model(run.model, run.seed, CPU)
        model.load_state_dict(worker["model"])
        assert evaluate(model, batch, torch.float32, Communicator(Topology(1))) == result.validation_loss
    assert folder.read_steps()[-1].validation_loss == result.validation_loss
    assert result.local_validation_loss not in (None, result.validation_loss)


def test_local_models_are_worse_than_their_mean_and_told_apart(
    tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig
) -> None:
    averaging = OuterSgdConfig(lr=1.0, momentum=0.0)
    run = tiny_run("diloco", "adamw", num_workers=4, num_steps=60, sync_interval=30, outer_optimizer=averaging)
    folder = new_folder(run)
    run_job(folder, execution)
    result, steps = folder.read_result(), folder.read_steps()
    assert result is not None
    assert math.isfinite(result.local_validation_loss or math.nan)
    assert result.local_validation_loss != result.validation_loss
    cosines = [step.pseudogradient_cosine for step in steps if step.step >= 30]
    assert all(cosine is not None and 0 < cosine < 1 for cosine in cosines)
