"""Loss on the fixed held-out sets: of the synchronised model, and on the main one of the local models as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from muloco_runner.config import RunConfig
from muloco_runner.data.batches import Batch, evaluation_batch, one_of_each_size, validation_batch
from muloco_runner.data.corpus import Corpus
from muloco_runner.data.validation_sets import ValidationSet, load_validation_sets
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.model.language_model import LanguageModel
from muloco_runner.training.precision import DTYPES, mean_loss

_CHUNK_TOKENS = 8192


@dataclass(frozen=True)
class Losses:
    """Of the synchronised model, nats per token."""

    main: float
    named: dict[str, float] = field(default_factory=dict)
    """On the sets of `data.validation`."""


class Evaluation:
    """A run's held-out sets, in the run's precision."""

    def __init__(self, run: RunConfig, corpus: Corpus, communicator: Communicator, device: torch.device) -> None:
        self.batch, self.dtype, self.communicator = (
            validation_batch(corpus, run, device),
            DTYPES[run.precision],
            communicator,
        )
        self.bytes_per_token = corpus.bytes_per_token
        self.sets = load_validation_sets(run.data)
        self.named = {name: evaluation_batch(one.split, run, device) for name, one in self.sets.items()}

    @torch.no_grad()
    def warm_up(self, worker: Worker) -> None:
        """Runs each size of chunk through the worker's model once, so that all compile before the clock starts."""
        worker.model.eval()
        chunks = [chunk for batch in (self.batch, *self.named.values()) for chunk in _chunks(batch)]
        for chunk in one_of_each_size(chunks):
            mean_loss(worker.model, chunk, self.dtype)
        worker.model.train()

    def of_synchronised_model(self, worker: Worker, parameters: Sequence[Tensor]) -> Losses:
        """The losses of `parameters`, which are like `worker.tensors`, computed in that worker's model."""
        with worker.holding(parameters) as model:
            main, *named = (
                evaluate(model, batch, self.dtype, self.communicator) for batch in (self.batch, *self.named.values())
            )
        return Losses(main, dict(zip(self.named, named, strict=True)))

    def of_local_models(self, workers: Sequence[Worker]) -> float:
        """The mean over all K workers of the loss of each one's own parameters; `workers` are those of this rank."""
        return evaluate_local_models(workers, self.batch, self.dtype, self.communicator)


def bits_per_byte(loss: float | None, bytes_per_token: float) -> float | None:
    """A loss in nats per token as bits per byte of text; None of one that is not finite."""
    return loss / math.log(2) / bytes_per_token if loss is not None and math.isfinite(loss) else None


def of_set(loss: float, batch: Batch, found: ValidationSet) -> dict[str, Any]:
    """What is recorded of a named set beside its name."""
    return {
        "validation_loss": loss if math.isfinite(loss) else None,
        "bits_per_byte": bits_per_byte(loss, found.bytes_per_token),
        "validation_tokens": batch.tokens_BT.numel(),
        "content_hash": found.content_hash,
    }


def evaluate(model: LanguageModel, batch: Batch, dtype: torch.dtype, communicator: Communicator) -> float:
    """Mean loss of `model`, the same on all ranks, in nats per token.

    Ranks share the chunks, whose sums are elements of one vector, so that the result does not depend on their number.
    """
    topology = communicator.topology
    chunks = _chunks(batch)
    sums = _chunk_sums(model, chunks, topology.rank, topology.num_ranks, dtype)
    return float(communicator.sum_over_ranks(sums).sum()) / len(batch)


def evaluate_local_models(
    workers: Sequence[Worker], batch: Batch, dtype: torch.dtype, communicator: Communicator
) -> float:
    """Mean over all K workers of the loss of each one's own parameters; replicas share the chunks."""
    topology = communicator.topology
    chunks = _chunks(batch)
    sums = torch.zeros(topology.num_workers, len(chunks), dtype=torch.float64)
    for worker in workers:
        sums[worker.index] = _chunk_sums(worker.model, chunks, topology.replica, topology.replicas, dtype)
    return float(communicator.sum_over_ranks(sums).sum(dim=1).mean()) / len(batch)


def _chunks(batch: Batch) -> list[Batch]:
    return batch.split(max(1, _CHUNK_TOKENS // batch.tokens_BT.shape[1]))


@torch.no_grad()
def _chunk_sums(model: LanguageModel, chunks: list[Batch], number: int, sharers: int, dtype: torch.dtype) -> Tensor:
    """Loss times sequences of the chunks that sharer `number` computes, zero for the others; shape (chunks,), float64.

    All sharers call the model equally often, as they must where it is sharded: at the end some compute the last chunk
    once more and leave it out.
    """
    sums = torch.zeros(len(chunks), dtype=torch.float64)
    model.eval()
    for first in range(0, len(chunks), sharers):
        mine = first + number
        chunk = chunks[min(mine, len(chunks) - 1)]
        loss = mean_loss(model, chunk, dtype)
        if mine < len(chunks):
            sums[mine] = float(loss) * len(chunk)
    model.train()
    return sums
