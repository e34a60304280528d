"""How the replicas of a worker hold its model and sum its gradient.

`OrderedCopies`: each has the whole model; micro-batches and replicas are summed pairwise in one fixed order.
`OverlappedCopies`: each has the whole model; gradients are averaged while the backward pass goes on (torch's DDP).
`OverlappedOwners`: the same where copies share Muon's work: a matrix's gradient goes to its owner alone.
`Shards`: each has rows of every parameter; a block's are gathered when it is computed (torch's FSDP2).
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from muloco_runner.collectives import Collectives, Transfer
from muloco_runner.config import ExecutionConfig, ModelConfig, MuonConfig, RunConfig
from muloco_runner.data import Batch
from muloco_runner.model import Transformer, build_model, empty_model
from muloco_runner.optimizers.gradient_sums import ELSEWHERE, GradientSums, total_norm
from muloco_runner.optimizers.muon import Muon
from muloco_runner.optimizers.placement import own_rows
from muloco_runner.topology import Communicator
from muloco_runner.worker import Worker

_DDP_SETTINGS = inspect.signature(DistributedDataParallel).parameters
_NO_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_SETTINGS else "broadcast_buffers": False
}
"""DDP's setting under its name from torch 2.13 on, and before."""

LossOf = Callable[[nn.Module, Batch], Tensor]
"""The mean loss of a model on a batch."""


class Replicas(Protocol):
    def build(self, config: ModelConfig, seed: int, device: torch.device) -> tuple[Transformer, list[Tensor]]:
        """A worker's model as this rank holds it, and its part of every parameter (see `Worker.tensors`)."""

    def gradient(self, worker: Worker, parts: Sequence[Batch], loss_of: LossOf) -> Tensor:
        """The mean loss over the worker's batch, of which `parts` are this replica's micro-batches.

        Its gradient is left in the `grad` of the worker's tensors and of the model's parameters; that of a matrix which
        another replica owns is left with its owner alone.
        """

    def gradient_norm(self, worker: Worker) -> Tensor:
        """The norm of all of it (0-D), the same on every replica."""


class _Copies:
    """What all that hold whole models have in common."""

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator

    def build(self, config: ModelConfig, seed: int, device: torch.device) -> tuple[Transformer, list[Tensor]]:
        model = build_model(config, seed, device)
        return model, list(model.parameters())

    def gradient_norm(self, worker: Worker) -> Tensor:
        owners = owners_of(worker)
        replicas = self.communicator.among_replicas if owners else None
        return total_norm({tensor: tensor.grad for tensor in worker.tensors}, owners, replicas)


class OrderedCopies(_Copies):
    def gradient(self, worker: Worker, parts: Sequence[Batch], loss_of: LossOf) -> Tensor:
        sequences = self.communicator.topology.replicas * sum(len(part) for part in parts)
        loss, gradients = _pairwise_sum(worker, parts, loss_of, sequences)
        gradient_of = dict(zip(worker.tensors, gradients, strict=True))
        del gradients  # a matrix's goes as soon as it has been sent
        if owners := owners_of(worker):
            communicator = self.communicator
            sums = GradientSums(owners, owners, communicator.among_replicas, communicator.sum_at_owners)
            for matrix in owners:
                sums.put(matrix, gradient_of.pop(matrix))
            _leave_in_grad(worker, sums.end())
        self.communicator.sum_over_replicas([loss, *gradient_of.values()])
        for tensor, gradient in gradient_of.items():
            tensor.grad = gradient
        return loss[0]


def owners_of(worker: Worker) -> dict[Tensor, int]:
    """The replicas that own the matrices on which they share Muon's work."""
    return worker.optimizer.owners if isinstance(worker.optimizer, Muon) else {}


def _leave_in_grad(worker: Worker, sums: dict[Tensor, Tensor]) -> None:
    for tensor, gradient in sums.items():
        tensor.grad = None if gradient is ELSEWHERE else gradient
    assert isinstance(worker.optimizer, Muon)
    worker.optimizer.use_gradients(sums)


def _pairwise_sum(
    worker: Worker, parts: Sequence[Batch], loss_of: LossOf, sequences: int
) -> tuple[Tensor, list[Tensor]]:
    """The first half's sum plus the second half's: the order in which replicas, a half each, would add as well."""
    if len(parts) == 1:
        loss = loss_of(worker.model, parts[0]) * (len(parts[0]) / sequences)
        loss.backward()
        gradients = [tensor.grad for tensor in worker.tensors if tensor.grad is not None]
        worker.drop_gradients()
        return loss.detach()[None], gradients
    half = len(parts) // 2
    loss, gradients = _pairwise_sum(worker, parts[:half], loss_of, sequences)
    other_loss, other_gradients = _pairwise_sum(worker, parts[half:], loss_of, sequences)
    torch._foreach_add_(gradients, other_gradients)
    return loss + other_loss, gradients


class OverlappedCopies(_Copies):
    def __init__(self, communicator: Communicator) -> None:
        super().__init__(communicator)
        self._buckets = None if communicator.topology.replicas == 1 else _BucketMeans(communicator.among_replicas)
        self._averaging: dict[Transformer, DistributedDataParallel] = {}

    def build(self, config: ModelConfig, seed: int, device: torch.device) -> tuple[Transformer, list[Tensor]]:
        model, tensors = super().build(config, seed, device)
        if self._buckets is not None:
            group = self.communicator.among_replicas.group
            # The model's buffers are constants: no step needs to send them.
            module = DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True, **_NO_BUFFERS)
            # A lambda, since torch refuses a hook whose annotations are still text.
            module.register_comm_hook(self._buckets, lambda buckets, bucket: buckets.average(bucket))
            self._averaging[model] = module
        return model, tensors

    def gradient(self, worker: Worker, parts: Sequence[Batch], loss_of: LossOf) -> Tensor:
        if self._buckets is None:
            return _accumulate(worker.model, parts, loss_of, lambda last: contextlib.nullcontext())
        module = self._averaging[worker.model]
        loss = _accumulate(module, parts, loss_of, lambda last: contextlib.nullcontext() if last else module.no_sync())
        self._buckets.end_backward()
        return self.communicator.average_over_replicas(loss)


class OverlappedOwners(_Copies):
    """Of one worker, which is all that a rank holds where there are replicas."""

    def __init__(self, communicator: Communicator) -> None:
        super().__init__(communicator)
        self._sums: GradientSums | None = None
        self._sending = False

    def gradient(self, worker: Worker, parts: Sequence[Batch], loss_of: LossOf) -> Tensor:
        if self._sums is None:
            # A backward pass comes to the last parameters first.
            backwards = list(reversed(worker.tensors))
            self._sums = GradientSums(backwards, owners_of(worker), self.communicator.among_replicas)
            for tensor in backwards:
                tensor.register_post_accumulate_grad_hook(self._send)
        replicas = self.communicator.topology.replicas
        # Each replica's share of the mean, so that a sum is all that is left to do.
        loss = _accumulate(
            worker.model, parts, lambda model, part: loss_of(model, part) / replicas, self._sending_at_the_last
        )
        transfer = self.communicator.among_replicas.all_reduce(loss, async_op=True)
        _leave_in_grad(worker, self._sums.end())
        transfer.wait()
        return loss

    @contextlib.contextmanager
    def _sending_at_the_last(self, last: bool) -> Iterator[None]:
        self._sending = last
        try:
            yield
        finally:
            self._sending = False

    def _send(self, tensor: Tensor) -> None:
        """Called when a tensor's gradient has come to be all of this replica's."""
        if self._sending:
            assert self._sums is not None
            assert tensor.grad is not None
            gradient, tensor.grad = tensor.grad, None
            self._sums.put(tensor, gradient)


class _BucketMeans:
    """DDP's buckets of gradients on their way to their mean, while the backward pass goes on.

    Uncounted is what DDP says of their order: once, before its second step, a few bytes a parameter tensor.
    """

    def __init__(self, replicas: Collectives) -> None:
        self._traffic = replicas.traffic
        self._replicas = Collectives(replicas.group, replicas.traffic.beside_training())
        self._last_full_at = 0.0
        self._link = ThreadPoolExecutor(1, "link")

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """The communication hook of one bucket."""
        mean = bucket.buffer().div_(self._replicas.size)
        self._last_full_at = time.perf_counter()
        transfer = self._replicas.all_reduce(mean, async_op=True)
        if self._traffic.link is None:
            assert transfer.work is not None
            return transfer.work.get_future().then(lambda done: done.value()[0])
        held: Future[Tensor] = Future()
        self._link.submit(_hold, transfer, mean, held)
        return held

    def end_backward(self) -> None:
        """When the last bucket was full nothing was left to compute: since then training has waited."""
        self._traffic.wait(time.perf_counter() - self._last_full_at)


def _hold(transfer: Transfer, result: Tensor, until_it_has_come: Future[Tensor]) -> None:
    try:
        transfer.wait()
        until_it_has_come.set_result(result)
    except Exception as error:
        until_it_has_come.set_exception(error)  # type: ignore[arg-type]


class Shards:
    """`precision` is that of gathered blocks; rows, gradients and their sums are float32.

    Embedding and head are gathered on their own. The embedding stays float32: its gradient adds up many tokens.
    """

    def __init__(self, communicator: Communicator, precision: torch.dtype) -> None:
        self.communicator, self.precision = communicator, precision

    def build(self, config: ModelConfig, seed: int, device: torch.device) -> tuple[Transformer, list[Tensor]]:
        model = empty_model(config)
        replicas = self.communicator.among_replicas
        mesh = DeviceMesh.from_group(replicas.group, device.type)
        whole = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        narrow = MixedPrecisionPolicy(self.precision, torch.float32, cast_forward_inputs=False)
        # Everything is let go after its forward pass: what stayed gathered would miss a change of the rows.
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=narrow, reshard_after_forward=True)
        fully_shard(model.embedding, mesh=mesh, mp_policy=whole, reshard_after_forward=True)
        fully_shard(model.head, mesh=mesh, mp_policy=narrow, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, mp_policy=whole, reshard_after_forward=True)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_all_gather(_GatheredRows(replicas))  # type: ignore[arg-type]
                module.set_custom_reduce_scatter(_SummedRows(replicas))  # type: ignore[arg-type]
        model.to_empty(device=device)
        topology = self.communicator.topology
        for parameter, values in model.initial_values(torch.Generator().manual_seed(seed)):
            local_rows(parameter).copy_(own_rows(values, topology.replica, topology.replicas))
        model.fill_buffers()
        return model, [local_rows(parameter) for parameter in model.parameters()]

    def gradient(self, worker: Worker, parts: Sequence[Batch], loss_of: LossOf) -> Tensor:
        # Summed over the ranks after each micro-batch: kept back, they would accumulate whole on every rank.
        loss = _accumulate(worker.model, parts, loss_of, lambda last: contextlib.nullcontext())
        for tensor, parameter in zip(worker.tensors, worker.model.parameters(), strict=True):
            tensor.grad = None if parameter.grad is None else local_rows(parameter.grad)
        return self.communicator.average_over_replicas(loss)

    def gradient_norm(self, worker: Worker) -> Tensor:
        of_rows = nn.utils.get_total_norm([tensor.grad for tensor in worker.tensors if tensor.grad is not None])
        return self.communicator.sum_over_shards(of_rows.square()).sqrt()


class _Staging:
    """FSDP's buffers, as torch's own `DefaultAllocMixin` makes them."""

    def __init__(self, replicas: Collectives) -> None:
        self.replicas = replicas

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _GatheredRows(_Staging):
    """How FSDP gathers a block's parameters."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        assert not async_op, "FSDP would wait for the work alone, not for the link"
        self.replicas.all_gather(output_tensor, input_tensor)
        return None


class _SummedRows(_Staging):
    """How FSDP sums a block's gradients; each rank gets those of its rows."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> dist.Work | None:
        assert not async_op
        self.replicas.reduce_scatter(output_tensor, input_tensor, op)
        return None


def build_replicas(
    run: RunConfig,
    execution: ExecutionConfig,
    communicator: Communicator,
    device: torch.device,
    precision: torch.dtype,
) -> Replicas:
    """What `execution.sharding`, as decided for this communicator, and `execution.reduction` ask for."""
    if communicator.sharded:
        return Shards(communicator, precision)
    if execution.sums_in_order(device.type):
        return OrderedCopies(communicator)
    shares_work = isinstance(run.inner_optimizer, MuonConfig) and communicator.topology.replicas > 1
    return OverlappedOwners(communicator) if shares_work else OverlappedCopies(communicator)


def local_rows(tensor: Tensor) -> Tensor:
    """What this rank holds of a sharded tensor, in the same memory."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local().detach()


def _accumulate(
    module: nn.Module,
    parts: Sequence[Batch],
    loss_of: LossOf,
    summing: Callable[[bool], contextlib.AbstractContextManager[None]],
) -> Tensor:
    """Adds each part's share of the gradient to the parameters' `grad`; `summing(last)` surrounds each pass."""
    sequences = sum(len(part) for part in parts)
    total: Tensor | None = None
    for number, part in enumerate(parts):
        with summing(number == len(parts) - 1):
            loss = loss_of(module, part) * (len(part) / sequences)
            loss.backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return total
