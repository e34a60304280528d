"""The replicas of a worker: each has its full model (DDP), or rows of every parameter (FSDP); they sum its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from muloco_runner.config import AnyModelConfig, ExecutionConfig, ModelConfig, RunConfig
from muloco_runner.data.batches import Batch
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.memory import Placement
from muloco_runner.model.attention import choose_attention
from muloco_runner.model.language_model import LanguageModel
from muloco_runner.optimizers import build_inner_optimizer
from muloco_runner.optimizers.arena import Arena
from muloco_runner.training.micro_batches import LossOf
from muloco_runner.training.precision import DTYPES
from muloco_runner.training.replicated import OrderedReplicas, OverlappedReplicas, OwnerReplicas

BuiltModel = tuple[LanguageModel, list[Tensor]]
"""A worker's model on this rank, and this rank's part of every parameter (see `Worker.tensors`)."""


class Replicas(Protocol):
    """The replicas of a worker, of which this rank is one."""

    def build(self, config: AnyModelConfig, seed: int, device: torch.device) -> BuiltModel:
        """A worker's model, its values those of `seed`."""

    def gradient(self, worker: Worker, micro_batches: Sequence[Batch], loss_of: LossOf) -> Tensor:
        """The mean loss over the worker's batch, of which `micro_batches` are this replica's share.

        Its gradient is left in the `grad` of the worker's tensors and of the model's parameters; that of a matrix which
        another replica owns is left with its owner alone.
        """

    def gradient_norm(self, worker: Worker) -> Tensor:
        """The norm of the worker's full gradient (0-D), the same on every replica."""


def build_replicas(
    run: RunConfig,
    execution: ExecutionConfig,
    communicator: Communicator,
    device: torch.device,
) -> Replicas:
    """The replicas that `execution.reduction` and the sharding chosen for this communicator ask for."""
    if communicator.sharded:
        # torch's FSDP and DTensor take most of a second to import.
        from muloco_runner.training.fsdp import FsdpReplicas

        return FsdpReplicas(communicator, DTYPES[run.precision])
    if execution.sums_in_order(device.type):
        return OrderedReplicas(communicator)
    shares_work = run.inner_optimizer.shares_matrices and communicator.topology.replicas > 1
    return OwnerReplicas(communicator) if shares_work else OverlappedReplicas(communicator)


def build_models(
    run: RunConfig, execution: ExecutionConfig, replicas: Replicas, num_models: int, device: torch.device,
    placement: Placement,
) -> list[BuiltModel]:  # fmt: skip
    """The models of this rank's workers, all with the same parameters."""
    run.model.check_execution(execution.attention, execution.activation_checkpointing)
    attention, compiled = execution.attention, execution.compile
    if isinstance(run.model, ModelConfig):
        attention = choose_attention(attention, run.model.head_width, device)
        compiled = device.type == "cuda" if compiled is None else compiled
    models = [replicas.build(run.model, run.seed, device) for _ in range(num_models)]
    for model, _ in models:
        model.set_execution(attention, placement.recompute, bool(compiled), placement.most_chunk)
    return models


def build_workers(
    run: RunConfig, execution: ExecutionConfig, models: Sequence[BuiltModel], communicator: Communicator
) -> list[Worker]:
    """The workers of this rank, each with an optimizer of its own, which may read the values that its model has now."""
    topology, traffic = communicator.topology, communicator.traffic
    # DDP replicas share the work on a model's matrices; FSDP shards it by itself.
    shares_work = topology.replicas > 1 and not communicator.sharded
    group = communicator.among_replicas.group if shares_work else None
    workers, arena = [], Arena()
    for index, (model, tensors) in zip(topology.local_workers, models, strict=True):
        optimizer = build_inner_optimizer(model, run, execution.muon_backend, group, traffic, arena)
        workers.append(Worker(index, model, optimizer, tensors))
    return workers
