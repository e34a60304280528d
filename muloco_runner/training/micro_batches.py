"""A replica's passes over its micro-batches."""

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


def pairwise_sum(
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
    loss, gradients = pairwise_sum(worker, parts[:half], loss_of, sequences)
    other_loss, other_gradients = pairwise_sum(worker, parts[half:], loss_of, sequences)
    torch._foreach_add_(gradients, other_gradients)
    return loss + other_loss, gradients
