"""What is run before the clock starts must leave no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from muloco_runner.config import ExecutionConfig, RunConfig
from muloco_runner.data.corpus import load_corpus
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.record import RunFolder
from muloco_runner.training.loop import Trainer
from muloco_runner.training.session import Session


def shapes_seen(trainer: Trainer) -> list[tuple[bool, int]]:
    """Whether each forward pass of the first worker's model was training, and its sequences, from now on."""
    seen: list[tuple[bool, int]] = []
    model = trainer.state.workers[0].model
    model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, len(inputs[0]))))
    return seen


@pytest.mark.parametrize("inner_optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("method", ["data_parallel", "diloco"])
def test_a_warm_up_runs_each_shape_and_changes_nothing(
    method: str,
    inner_optimizer: str,
    tiny_run: Callable[..., RunConfig],
    new_folder: Callable[..., RunFolder],
    execution: ExecutionConfig,
) -> None:
    run = tiny_run(method, inner_optimizer, num_steps=4, sync_interval=2)
    losses, states = [], []
    for warms_up in (False, True):
        session = Session(new_folder(run), execution, Communicator(Topology(1)), torch.device("cpu"))
        trainer = Trainer(run, load_corpus(run.data), session)
        trainer.inner_step.micro_batch_sequences = 3  # of the batch's 8: a remainder of 2
        before = copy.deepcopy(state_of(trainer))
        if warms_up:
            seen = shapes_seen(trainer)
            trainer._warm_up()
            assert {size for training, size in seen if training} == {3, run.worker_batch_sequences % 3}
            assert any(not training for training, _ in seen)
            torch.testing.assert_close(state_of(trainer), before, rtol=0, atol=0)
        for _ in range(run.num_steps):
            trainer.step_workers()
            trainer.method.after_inner_step(trainer.state.step)
        losses.append(trainer.state.losses.clone())
        states.append(state_of(trainer))
    assert torch.equal(*losses)
    torch.testing.assert_close(*states, rtol=0, atol=0)


def state_of(trainer: Trainer) -> list[Any]:
    """Parameters, gradients and the state of the first worker's optimizer, but for settings that no step reads."""
    worker = trainer.state.workers[0]
    tensors = [(tensor.detach(), tensor.grad) for tensor in worker.tensors]
    state = worker.optimizer.state_dict()["state"]
    return [tensors, {number: dict(values) for number, values in state.items()}]
