"""Streaming: which parameters are shared together, and at which steps (Streaming DiLoCo, arXiv 2501.18512).

A model of one fragment is plain DiLoCo. Fragments are runs of layers; the embedding belongs to the first, final norm
and head to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from muloco_runner.diloco.error_feedback import remembered
from muloco_runner.diloco.exchange import Exchange
from muloco_runner.diloco.flat import copy_into, flatten, views
from muloco_runner.diloco.outer_optimizer import OuterOptimizer
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.row_shards import FullTensors


def split_by_layers(
    names: Sequence[str], num_layers: int, num_fragments: int, blocks: str = "blocks"
) -> list[list[int]]:
    """Indices into `names`, the parameters in the model's order, of each fragment's.

    `blocks` names the list of layers; what comes before it is the first fragment's, all else the last one's.
    """
    fragments: list[list[int]] = [[] for _ in range(num_fragments)]
    fragment = 0
    for index, name in enumerate(names):
        if blocks and name.startswith(f"{blocks}."):
            layer = int(name.removeprefix(f"{blocks}.").partition(".")[0])
            fragments[layer * num_fragments // num_layers].append(index)
            fragment = num_fragments - 1
        else:
            fragments[fragment].append(index)
    return fragments


@dataclass(frozen=True)
class FragmentSchedule:
    """When one fragment's exchange starts and when it completes. Steps are inner steps completed, from 1."""

    number: int
    num_fragments: int
    sync_interval: int
    """H."""
    delay_steps: int
    """tau."""

    @property
    def offset(self) -> int:
        """An exchange starts where the step is this, modulo H: of fragment i of F at (i + 1) H / F."""
        return (self.number + 1) * self.sync_interval // self.num_fragments % self.sync_interval

    def starts(self, step: int) -> bool:
        return step % self.sync_interval == self.offset

    def is_pending(self, step: int) -> bool:
        """Whether an exchange has started before or at `step`, and completes after it."""
        started = step - (step - self.offset) % self.sync_interval
        return started > 0 and step < started + self.delay_steps

    def completes(self, step: int) -> bool:
        started = step - self.delay_steps
        return started > 0 and self.starts(started)


@dataclass
class CompletedExchange:
    """The mean over all workers of one fragment's pseudogradients."""

    mean: Tensor
    """Mean pseudogradient, flat like the anchor."""
    products_KK: Tensor | None
    """Dot products between what the workers sent; None where a checkpoint held the mean alone."""


class Fragment:
    """The tensors that are shared together: their anchor, their outer optimizer, and each worker's error memory."""

    def __init__(
        self,
        indices: Sequence[int],
        workers: Sequence[Worker],
        schedule: FragmentSchedule,
        optimizer: OuterOptimizer,
        exchange: Exchange,
        error_feedback: float | None = None,
        full: FullTensors | None = None,
    ) -> None:
        """`indices` are those of the tensors in `Worker.tensors`; `error_feedback` is the decay of what is remembered.

        With `full`, tensors whose rows are spread over replicas are exchanged by their owners.
        """
        self.indices, self.workers, self.schedule = indices, workers, schedule
        self.anchor = flatten(self.tensors_of(workers[0]))
        self.optimizer, self.exchange, self.error_feedback, self.full = optimizer, exchange, error_feedback, full
        self.errors = [] if error_feedback is None else [torch.zeros_like(self.anchor) for _ in workers]
        """With error feedback, what each local worker has not sent yet: flat, as its pseudogradient."""
        self.outer_steps = 0
        """Taken so far."""

    def tensors_of(self, worker: Worker) -> list[Tensor]:
        return [worker.tensors[index] for index in self.indices]

    def views(self, flat: Tensor) -> list[Tensor]:
        """The fragment's tensors in a flat one like the anchor."""
        return views(flat, self.tensors_of(self.workers[0]))

    def pseudogradients(self) -> list[Tensor]:
        """Anchor minus parameters, flat, of each local worker."""
        deltas = [flatten(self.tensors_of(worker)) for worker in self.workers]
        for delta in deltas:
            torch.sub(self.anchor, delta, out=delta)
        return deltas

    def average(self, pseudogradients: Sequence[Tensor]) -> CompletedExchange:
        """Their mean over all workers, as sent. Does not touch the workers, so that they may train on meanwhile."""
        remembers, due = self.error_feedback is not None, pseudogradients
        if self.error_feedback is not None:
            due = [remembered(e, self.error_feedback, d) for e, d in zip(self.errors, pseudogradients, strict=True)]
        mean, tensors = torch.empty_like(self.anchor), [self.views(flat) for flat in due]
        if self.full is None:
            products_KK = self.exchange.average(tensors, self.views(mean), leave_rest=remembers)
            return CompletedExchange(mean, products_KK)
        (shards,) = tensors  # where a worker has replicas, a rank has one worker
        owned = self.full.gather(shards)
        means = [torch.empty_like(tensor) for tensor in owned]
        products_KK = self.exchange.average([owned], means, leave_rest=remembers)
        self.full.scatter(means, self.views(mean))
        if remembers:
            self.full.scatter(owned, shards)
        return CompletedExchange(mean, products_KK)

    def average_beside_training(
        self, pseudogradients: Sequence[Tensor], ready: torch.cuda.Event | None
    ) -> CompletedExchange:
        """The same on a thread of its own and, on a GPU, a stream of its own, once `ready` has happened."""
        if ready is None:
            return self.average(pseudogradients)
        training, stream = torch.cuda.default_stream(self.anchor.device), _background_stream(self.anchor.device)
        stream.wait_event(ready)
        with torch.cuda.stream(stream):
            exchange = self.average(pseudogradients)
        stream.synchronize()
        # The outer step reads it on the other stream, when this one may reuse its memory.
        exchange.mean.record_stream(training)
        return exchange

    def record_ready(self) -> torch.cuda.Event | None:
        """Return an event that happens once what is queued on the GPU by now is done; None on a CPU, where it is."""
        return torch.cuda.current_stream(self.anchor.device).record_event() if self.anchor.is_cuda else None

    def step(self, mean: Tensor, mixing: float) -> None:
        """The outer step; every worker goes on from the new anchor, and keeps the share `mixing` of its own."""
        self.outer_steps += 1
        self.optimizer.step(self.anchor, mean, self.outer_steps)
        for worker in self.workers:
            tensors = self.tensors_of(worker)
            if mixing:
                copy_into(tensors, torch.lerp(self.anchor, flatten(tensors), mixing))
            else:
                copy_into(tensors, self.anchor)


@cache
def _background_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of that GPU for exchanges beside training: each new one would have memory of its own."""
    return torch.cuda.Stream(device)
