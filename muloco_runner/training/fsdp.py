"""Replicas that each hold some rows of every parameter; a block's are gathered when it is computed (torch's FSDP2)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from muloco_runner.config import AnyModelConfig, ModelConfig
from muloco_runner.config.variants import load
from muloco_runner.data.batches import Batch
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.collectives import Collectives
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.dtensor import own_rows
from muloco_runner.model.language_model import LanguageModel
from muloco_runner.model.target_model import shard_target
from muloco_runner.model.transformer import Transformer, empty_model
from muloco_runner.training.micro_batches import LossOf, accumulate


class FsdpReplicas:
    """`precision` is that of gathered blocks; rows, gradients and their sums are float32.

    Embedding and head are gathered on their own. The embedding stays float32: its gradient adds up many tokens. Where
    several groups of replicas each have all rows (hybrid sharding), gradients are summed within each group as always,
    and averaged over the groups once a step.
    """

    def __init__(self, communicator: Communicator, precision: torch.dtype) -> None:
        self.communicator, self.precision = communicator, precision

    def build(self, config: AnyModelConfig, seed: int, device: torch.device) -> tuple[LanguageModel, list[Tensor]]:
        shards = self.communicator.among_shards
        mesh = DeviceMesh.from_group(shards.group, device.type)
        transformer = empty_model(config) if isinstance(config, ModelConfig) else None
        model: LanguageModel
        if transformer is None:
            model = load(config)(config, seed, torch.device("cpu"))
            shard_target(model, mesh)
        else:
            model = transformer
            self._shard(transformer, mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_all_gather(_GatheredRows(shards))  # type: ignore[arg-type]
                module.set_custom_reduce_scatter(_SummedRows(shards))  # type: ignore[arg-type]
        if transformer is None:
            # Built in full on each rank's host: its class draws its values in an order of its own.
            model.to(device)
        else:
            self._fill(transformer, seed, device)
        return model, [local_rows(parameter) for parameter in model.parameters()]

    def _shard(self, model: Transformer, mesh: DeviceMesh) -> None:
        float32 = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        low_precision = MixedPrecisionPolicy(self.precision, torch.float32, cast_forward_inputs=False)
        # Everything is freed after its forward pass: what stayed gathered would miss a change of the rows.
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=low_precision, reshard_after_forward=True)
        fully_shard(model.embedding, mesh=mesh, mp_policy=float32, reshard_after_forward=True)
        fully_shard(model.head, mesh=mesh, mp_policy=low_precision, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, mp_policy=float32, reshard_after_forward=True)

    def _fill(self, model: Transformer, seed: int, device: torch.device) -> None:
        """Values that depend on `seed` alone, one tensor at a time."""
        model.to_empty(device=device)
        communicator = self.communicator
        for parameter, values in model.initial_values(torch.Generator().manual_seed(seed)):
            local_rows(parameter).copy_(own_rows(values, communicator.shard, communicator.num_shards))
        model.fill_buffers()

    def gradient(self, worker: Worker, micro_batches: Sequence[Batch], loss_of: LossOf) -> Tensor:
        # Summed over the ranks after each micro-batch: summed later, full gradients would accumulate on every rank.
        loss = accumulate(worker.model, micro_batches, loss_of, lambda last: contextlib.nullcontext())
        for tensor, parameter in zip(worker.tensors, worker.model.parameters(), strict=True):
            tensor.grad = None if parameter.grad is None else local_rows(parameter.grad)
        self.communicator.average_over_copies([t.grad for t in worker.tensors if t.grad is not None])
        return self.communicator.average_over_replicas(loss)

    def gradient_norm(self, worker: Worker) -> Tensor:
        of_rows = nn.utils.get_total_norm([tensor.grad for tensor in worker.tensors if tensor.grad is not None])
        return self.communicator.sum_over_shards(of_rows.square()).sqrt()


class _Staging:
    """Allocates FSDP's buffers, as torch's own `DefaultAllocMixin` makes them."""

    def __init__(self, shards: Collectives) -> None:
        self.shards = shards

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _GatheredRows(_Staging):
    """Gathers a block's parameters."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        assert not async_op, "FSDP would wait for the work alone, not for the link"
        self.shards.all_gather(output_tensor, input_tensor)
        return None


class _SummedRows(_Staging):
    """Sums a block's gradients; each rank gets those of its rows."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> dist.Work | None:
        assert not async_op
        self.shards.reduce_scatter(output_tensor, input_tensor, op)
        return None


def local_rows(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor, in the same memory."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local().detach()
