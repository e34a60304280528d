"""Replicas that each hold a worker's full model (DDP). They sum its gradient in one of three ways.

`OrderedReplicas`: micro-batches and replicas are summed pairwise in one fixed order.
`OverlappedReplicas`: gradients are averaged while the backward pass goes on (torch's DDP).
`OwnerReplicas`: the same where replicas share Muon's work: a matrix's gradient goes to its owner alone.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from muloco_runner.config import AnyModelConfig
from muloco_runner.config.variants import load
from muloco_runner.data.batches import Batch
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.collectives import Collectives, Transfer
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.gradient_reducer import GradientReducer, total_norm
from muloco_runner.model.language_model import LanguageModel
from muloco_runner.optimizers import Muon
from muloco_runner.training.micro_batches import LossOf, accumulate, pairwise_sum

_DDP_SETTINGS = inspect.signature(DistributedDataParallel).parameters
_NO_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_SETTINGS else "broadcast_buffers": False
}
"""DDP's setting under its name from torch 2.13 on, and before."""


class FullReplicas:
    """The part that all three share."""

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator

    def build(self, config: AnyModelConfig, seed: int, device: torch.device) -> tuple[LanguageModel, list[Tensor]]:
        model = load(config)(config, seed, device)
        return model, list(model.parameters())

    def gradient_norm(self, worker: Worker) -> Tensor:
        owners = _owners(worker)
        replicas = self.communicator.among_replicas if owners else None
        return total_norm({tensor: tensor.grad for tensor in worker.tensors}, owners, replicas)


def _owners(worker: Worker) -> dict[Tensor, int]:
    """The replicas that own the matrices on which they share Muon's work."""
    return worker.optimizer.owners if isinstance(worker.optimizer, Muon) else {}


def _leave_in_grad(gradients: Mapping[Tensor, Tensor | None]) -> None:
    for tensor, gradient in gradients.items():
        tensor.grad = gradient


def _expect_at_owners(worker: Worker) -> None:
    if isinstance(worker.optimizer, Muon):
        worker.optimizer.expect_gradients_at_owners()


class OrderedReplicas(FullReplicas):
    def __init__(self, communicator: Communicator) -> None:
        super().__init__(communicator)
        self._to_owners: GradientReducer | None = None

    def gradient(self, worker: Worker, micro_batches: Sequence[Batch], loss_of: LossOf) -> Tensor:
        sequences = self.communicator.topology.replicas * sum(len(micro_batch) for micro_batch in micro_batches)
        loss, gradients = pairwise_sum(worker, micro_batches, loss_of, sequences)
        gradient_of = dict(zip(worker.tensors, gradients, strict=True))
        del gradients  # a matrix's is freed as soon as it has been sent
        if owners := _owners(worker):
            if self._to_owners is None:
                among, in_order = self.communicator.among_replicas, self.communicator.sum_at_owners
                self._to_owners = GradientReducer(owners, owners, among, in_order)
            for matrix in owners:
                self._to_owners.add(matrix, gradient_of.pop(matrix))
            _leave_in_grad(self._to_owners.finish())
        self.communicator.sum_over_replicas([loss, *gradient_of.values()])
        _leave_in_grad(gradient_of)
        _expect_at_owners(worker)
        return loss[0]


class OverlappedReplicas(FullReplicas):
    def __init__(self, communicator: Communicator) -> None:
        super().__init__(communicator)
        self._buckets = None if communicator.topology.replicas == 1 else _BucketMeans(communicator.among_replicas)
        self._averaging: dict[nn.Module, DistributedDataParallel] = {}

    def build(self, config: AnyModelConfig, seed: int, device: torch.device) -> tuple[LanguageModel, list[Tensor]]:
        model, tensors = super().build(config, seed, device)
        if self._buckets is not None:
            group = self.communicator.among_replicas.group
            # The model's buffers are constants: no step needs to send them.
            module = DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True, **_NO_BUFFERS)
            # A lambda, since torch refuses a hook whose annotations are still text.
            module.register_comm_hook(self._buckets, lambda buckets, bucket: buckets.average(bucket))
            self._averaging[model] = module
        return model, tensors

    def gradient(self, worker: Worker, micro_batches: Sequence[Batch], loss_of: LossOf) -> Tensor:
        if self._buckets is None:
            return accumulate(worker.model, micro_batches, loss_of, lambda last: contextlib.nullcontext())
        module = self._averaging[worker.model]
        loss = accumulate(
            module, micro_batches, loss_of, lambda last: contextlib.nullcontext() if last else module.no_sync()
        )
        self._buckets.end_backward()
        return self.communicator.average_over_replicas(loss)


class OwnerReplicas(FullReplicas):
    """Replicas of one worker: with several ranks a worker, a rank trains one."""

    def __init__(self, communicator: Communicator) -> None:
        super().__init__(communicator)
        self._sums: GradientReducer | None = None
        self._sending = False

    def gradient(self, worker: Worker, micro_batches: Sequence[Batch], loss_of: LossOf) -> Tensor:
        if self._sums is None:
            # A backward pass comes to the last parameters first.
            backwards = list(reversed(worker.tensors))
            self._sums = GradientReducer(backwards, _owners(worker), self.communicator.among_replicas)
            for tensor in backwards:
                tensor.register_post_accumulate_grad_hook(self._send)
        replicas = self.communicator.topology.replicas
        # Each replica's share of the mean, so that a sum is all that is left to do.
        loss = accumulate(
            worker.model,
            micro_batches,
            lambda model, micro_batch: loss_of(model, micro_batch) / replicas,
            self._sending_last,
        )
        transfer = self.communicator.among_replicas.all_reduce(loss, async_op=True)
        _leave_in_grad(self._sums.finish())
        _expect_at_owners(worker)
        transfer.wait()
        return loss

    @contextlib.contextmanager
    def _sending_last(self, last: bool) -> Iterator[None]:
        self._sending = last
        try:
            yield
        finally:
            self._sending = False

    def _send(self, tensor: Tensor) -> None:
        """Called when a tensor's gradient holds all of this replica's micro-batches."""
        if self._sending:
            assert self._sums is not None
            assert tensor.grad is not None
            gradient, tensor.grad = tensor.grad, None
            self._sums.add(tensor, gradient)


class _BucketMeans:
    """Averages DDP's buckets of gradients while the backward pass goes on.

    Not counted as traffic: DDP's own message on their order, sent once, a few bytes a parameter tensor.
    """

    def __init__(self, replicas: Collectives) -> None:
        self._traffic = replicas.traffic
        self._replicas = Collectives(replicas.group, replicas.traffic.beside_training())
        self._last_full_at = 0.0
        self._link = ThreadPoolExecutor(1, "link")

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]  # in no stub
        """The communication hook of one bucket."""
        mean = bucket.buffer().div_(self._replicas.size)
        self._last_full_at = time.perf_counter()
        transfer = self._replicas.all_reduce(mean, async_op=True)
        if self._traffic.link is None:
            assert transfer.work is not None
            return transfer.work.get_future().then(lambda done: done.value()[0])
        delayed: Future[Tensor] = Future()
        self._link.submit(_complete_when_sent, transfer, mean, delayed)
        return delayed

    def end_backward(self) -> None:
        """Counts the time since the last bucket was full as waiting: nothing was left to compute."""
        self._traffic.wait(time.perf_counter() - self._last_full_at)


def _complete_when_sent(transfer: Transfer, result: Tensor, until_sent: Future[Tensor]) -> None:
    try:
        transfer.wait()
        until_sent.set_result(result)
    except Exception as error:
        until_sent.set_exception(error)  # type: ignore[arg-type]
