"""Generalized Primal Averaging as a method: through the trainer, with one worker and several, and what is read back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from muloco_runner.compose import compose_app_config
from muloco_runner.config import ConfigError, ExecutionConfig, PrimalAveragingConfig, QuantisationConfig, RunConfig
from muloco_runner.data.corpus import load_corpus
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.inference.load import load_run
from muloco_runner.optimizers import GPA
from muloco_runner.record import RunFolder
from muloco_runner.training.learning_rate import scheduled_lr
from muloco_runner.training.loop import Trainer
from muloco_runner.training.session import Session

MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]


def trainer_of(run: RunConfig, folder: RunFolder, stop_at: int = 1000, **execution: object) -> Trainer:
    def should_stop() -> bool:
        return trainer.state.step >= stop_at

    settings = ExecutionConfig(device="cpu", log_interval_steps=5, **execution)  # type: ignore[arg-type]
    session = Session(
        folder, settings, Communicator(Topology(run.num_workers)), torch.device("cpu"), should_stop=should_stop
    )
    trainer = Trainer(run, load_corpus(run.data), session)
    return trainer


def by_hand(run: RunConfig, trainer: Trainer) -> list[list[Tensor]]:
    """Trains each worker of a fresh trainer with `GPA`, z averaged every H steps; returns each one's x."""
    method, workers, step = run.method, trainer.state.workers, trainer.inner_step
    assert isinstance(method, PrimalAveragingConfig)
    optimizers = [
        GPA(worker.tensors, lambda _, own=worker.optimizer: own, mu_x=method.share_kept, mu_y=method.mu_y)
        for worker in workers
    ]
    for number in range(run.num_steps):
        for worker, optimizer in zip(workers, optimizers, strict=True):
            batch = step.data.worker_batch(number, worker.index, 0, 1)
            step.replicas.gradient(worker, batch.split(step.micro_batch_sequences), step._loss)
            step._clip_gradient(worker)
            for group in optimizer.param_groups:
                group["lr"] = scheduled_lr(run, number)
            optimizer.step()
            worker.drop_gradients()
        if len(workers) > 1 and ((number + 1) % method.sync_interval == 0 or number + 1 == run.num_steps):
            for optimizer in optimizers:
                optimizer.eval()
            for index in range(len(workers[0].tensors)):
                z = [o._z[w.tensors[index]] for o, w in zip(optimizers, workers, strict=True)]
                mean = torch.stack(z).mean(dim=0)
                for own in z:
                    own.copy_(mean)
            for optimizer in optimizers:
                optimizer.train()
    for optimizer in optimizers:
        optimizer.eval()
    return [[tensor.detach().clone() for tensor in worker.tensors] for worker in workers]


@pytest.mark.parametrize("inner", ["adamw", "muon"])
def test_one_worker_is_the_optimizer_alone(inner: str, tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    run = tiny_run("gpa", inner, num_steps=8)
    trainer, other = trainer_of(run, new_folder(run, "whole")), trainer_of(run, new_folder(run, "alone"))
    result = trainer.train()
    assert result is not None
    (expected,) = by_hand(run, other)
    found = trainer.method.synchronised_parameters()
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    # The loss that is recorded is that of x.
    losses = trainer.evaluation.of_synchronised_model(trainer.state.workers[0], expected)
    assert result.validation_loss == losses.main
    trained = trainer.evaluation.of_synchronised_model(trainer.state.workers[0], trainer.state.workers[0].tensors)
    assert result.validation_loss != trained.main


def test_a_first_update_is_as_large_as_data_parallels(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    sums = []
    for method in ("gpa", "data_parallel"):
        run = tiny_run(method, "adamw", num_steps=8)
        trainer = trainer_of(run, new_folder(run, method))
        trainer.step_workers()
        sums.append(trainer.state.update_sums)
    assert sums[0] is not None
    torch.testing.assert_close(*sums)


def test_workers_average_z_and_x_is_their_mean(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    run = tiny_run("gpa", "muon", num_workers=2, sync_interval=3, num_steps=8)
    trainer, other = trainer_of(run, new_folder(run, "whole")), trainer_of(run, new_folder(run, "alone"))
    trainer.train()
    expected = by_hand(run, other)
    for one, *theirs in zip(trainer.method.synchronised_parameters(), *expected, strict=True):
        torch.testing.assert_close(one, torch.stack(theirs).mean(dim=0), rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(one, two) for one, two in zip(*expected, strict=True)), "x stays each worker's own"


@pytest.mark.parametrize("compression", [None, QuantisationConfig("linear", bits=4)])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    compression: QuantisationConfig | None, tiny_run: MakeRun, new_folder: MakeFolder
) -> None:
    composed = {} if compression is None else {"compression": compression}
    run = tiny_run("gpa", "muon", num_workers=2, sync_interval=3, num_steps=8, **composed)
    whole, cut = new_folder(run, "whole"), new_folder(run, "cut")
    first = trainer_of(run, whole, keep="final")
    expected = first.train()
    assert trainer_of(run, cut, stop_at=4).train() is None
    again = trainer_of(run, cut, keep="final")
    found = again.train()
    assert expected is not None
    assert found is not None
    assert (found.validation_loss, found.train_loss) == (expected.validation_loss, expected.train_loss)
    for one, two in zip(again.method.synchronised_parameters(), first.method.synchronised_parameters(), strict=True):
        assert torch.equal(one, two)


def test_weights_that_are_read_back_are_x(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    run = tiny_run("gpa", "adamw", num_workers=2, sync_interval=3, num_steps=8)
    folder = new_folder(run)
    trainer = trainer_of(run, folder, keep="final")
    trainer.train()
    x = trainer.method.synchronised_parameters()
    for parameter, expected in zip(load_run(folder.path).model.parameters(), x, strict=True):
        assert torch.equal(parameter, expected)
    own = [list(load_run(folder.path, worker=k).model.parameters()) for k in range(2)]
    for one, two, expected in zip(*own, x, strict=True):
        torch.testing.assert_close((one + two) / 2, expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.mu_y=0"], "method.mu_y=0.0: must be above 0"),
        (["method.mu_x=1"], "method.mu_x=1.0: must be at least 0"),
        (["method/compression=linear"], "no effect with method.num_workers=1"),
        (["method.mu_x=0.9", "method.sync_interval=8"], "leave one of them out"),
        (["method.num_workers=2", "method.sync_interval=100000"], "would meet at the end alone"),
        (["method.streaming.num_fragments=2"], "streaming"),
        (["method/outer_optimizer=muloco"], "outer_optimizer"),
        (["inner_optimizer.mu_y=0.5"], "did you mean method.mu_y?"),
    ],
)
def test_what_it_cannot_do_is_one_clear_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_app_config(["algorithm=gpa_adamw", *words]).run.run_id  # noqa: B018
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_its_names_and_the_mu_x_of_an_interval() -> None:
    runs = {inner: compose_app_config([f"algorithm=gpa_{inner}"]).run for inner in ("adamw", "muon")}
    assert [run.algorithm for run in runs.values()] == ["GPA-AdamW", "GPA-Muon"]
    method = compose_app_config(["algorithm=gpa_muon", "method.sync_interval=64"]).run.method
    assert isinstance(method, PrimalAveragingConfig)
    assert round(method.share_kept, 4) == 0.9984
    assert RunConfig.from_dict(runs["muon"].to_dict()) == runs["muon"]
