"""Gradient accumulation over a replica's micro-batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from muloco_runner.data.batches import Batch
from muloco_runner.diloco.worker import Worker

LossOf = Callable[[nn.Module, Batch], Tensor]
"""The mean loss of a model on a batch."""


def accumulate(
    module: nn.Module,
    micro_batches: Sequence[Batch],
    loss_of: LossOf,
    context: Callable[[bool], contextlib.AbstractContextManager[None]],
) -> Tensor:
    """Adds each micro-batch's share of the mean gradient to the parameters' `grad`; returns the mean loss (0-D).

    `context(last)` surrounds each forward and backward pass.
    """
    sequences = sum(len(micro_batch) for micro_batch in micro_batches)
    total: Tensor | None = None
    for number, micro_batch in enumerate(micro_batches):
        with context(number == len(micro_batches) - 1):
            loss = loss_of(module, micro_batch) * (len(micro_batch) / sequences)
            loss.backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return total


def pairwise_sum(
    worker: Worker, micro_batches: Sequence[Batch], loss_of: LossOf, sequences: int
) -> tuple[Tensor, list[Tensor]]:
    """The loss, shape (1,), and gradients of the micro-batches over `sequences`: the first half's sum plus the second
    half's, the order in which replicas with a half each would add as well."""
    if len(micro_batches) == 1:
        loss = loss_of(worker.model, micro_batches[0]) * (len(micro_batches[0]) / sequences)
        loss.backward()
        gradients = [tensor.grad for tensor in worker.tensors if tensor.grad is not None]
        worker.drop_gradients()
        return loss.detach()[None], gradients
    half = len(micro_batches) // 2
    loss, gradients = pairwise_sum(worker, micro_batches[:half], loss_of, sequences)
    other_loss, other_gradients = pairwise_sum(worker, micro_batches[half:], loss_of, sequences)
    torch._foreach_add_(gradients, other_gradients)
    return loss + other_loss, gradients
