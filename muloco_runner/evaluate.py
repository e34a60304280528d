"""Loss on the fixed held-out set: of the synchronised model, and of the local models under their own name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from muloco_runner.data import Batch
from muloco_runner.model import Transformer
from muloco_runner.topology import Communicator
from muloco_runner.worker import Worker

_CHUNK_TOKENS = 8192


def evaluate(model: Transformer, batch: Batch, dtype: torch.dtype, communicator: Communicator) -> float:
    """Mean loss of `model`, which all ranks hold alike, in nats per token.

    Ranks share the chunks; chunk sums meet in one vector, so that the result does not depend on how many ranks there
    are.
    """
    topology = communicator.topology
    chunks = _chunks(batch)
    mine = range(topology.rank, len(chunks), topology.num_ranks)
    sums = communicator.sum_over_ranks(_chunk_sums(model, chunks, mine, dtype))
    return float(sums.sum()) / len(batch)


def evaluate_local_models(
    workers: Sequence[Worker], batch: Batch, dtype: torch.dtype, communicator: Communicator
) -> float:
    """Mean over all K workers of the loss of each one's own parameters."""
    topology = communicator.topology
    chunks = _chunks(batch)
    losses = torch.zeros(topology.num_workers, dtype=torch.float64)
    if topology.replica == 0:
        for worker in workers:
            sums = _chunk_sums(worker.model, chunks, range(len(chunks)), dtype)
            losses[worker.index] = sums.sum() / len(batch)
    return float(communicator.sum_over_ranks(losses).mean())


def _chunks(batch: Batch) -> list[Batch]:
    return batch.split(max(1, _CHUNK_TOKENS // batch.tokens_BT.shape[1]))


@torch.no_grad()
def _chunk_sums(model: Transformer, chunks: list[Batch], mine: Iterable[int], dtype: torch.dtype) -> Tensor:
    """Each of my chunks' loss times its sequences, zero for the others; shape (chunks,), float64."""
    sums = torch.zeros(len(chunks), dtype=torch.float64)
    model.eval()
    for number in mine:
        chunk = chunks[number]
        with torch.autocast(chunk.tokens_BT.device.type, dtype, enabled=dtype != torch.float32):
            loss = model(chunk.tokens_BT, chunk.documents_BT, chunk.targets_BT)
        sums[number] = float(loss) * len(chunk)
    model.train()
    return sums
