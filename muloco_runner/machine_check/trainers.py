"""Trainers of a few steps, for the sections that train."""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

from muloco_runner.config import DiLoCoConfig, ExecutionConfig, ModelConfig, MuonConfig, RunConfig
from muloco_runner.data.corpus import load_corpus
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.machine_check.timing import Machine
from muloco_runner.record import RunFolder
from muloco_runner.training.loop import Trainer
from muloco_runner.training.session import Session

_STEPS = 1000
"""More than any section takes: a learning rate is wanted for each."""


def models(machine: Machine) -> dict[str, ModelConfig]:
    """Return those that are timed: of the study's ladder on a GPU, one tiny model elsewhere."""
    if machine.is_gpu:
        return {"150m": ModelConfig(width=512, num_layers=6), "416m": ModelConfig(width=1024, num_layers=12)}
    return {"tiny": ModelConfig(width=32, num_layers=2, head_width=16, vocab_size=256, sequence_length=64)}


def run_of(model: ModelConfig, batch_tokens: int, **choices: Any) -> RunConfig:
    """Return a run in bfloat16 with Muon inside, on `batch_tokens` a step of all workers; `choices` are its fields."""
    budget = _STEPS * batch_tokens / model.num_params
    inner = MuonConfig()
    return RunConfig(
        model, global_batch_tokens=batch_tokens, tokens_per_parameter=budget, precision="bfloat16",
        inner_optimizer=inner, **choices,
    )  # fmt: skip


def muloco(workers: int, interval: int) -> DiLoCoConfig:
    """Return DiLoCo's outer steps for that many workers, every `interval` steps."""
    return DiLoCoConfig(num_workers=workers, sync_interval=interval)


@contextlib.contextmanager
def trainer_of(
    run: RunConfig, machine: Machine, communicator: Communicator | None = None, **execution: Any
) -> Iterator[Trainer]:
    """Yield a trainer in a folder of its own, and free its memory afterwards."""
    communicator = communicator or Communicator(Topology(run.num_workers))
    with tempfile.TemporaryDirectory(prefix="check-") as folder:
        session = Session(
            RunFolder.of(folder, run.run_id), ExecutionConfig(device=machine.device.type, **execution), communicator,
            machine.device,
        )  # fmt: skip
        yield Trainer(run, load_corpus(run.data), session)
    gc.collect()
    if machine.is_gpu:
        torch.cuda.empty_cache()
