"""Bytes beside what stays in the phases of an inner step: one micro-batch's passes, and the inner optimizer."""

from __future__ import annotations

import math
from typing import assert_never

from muloco_runner.config import BuiltInConfig, ModelConfig, TargetModelConfig
from muloco_runner.distributed.message_sizes import MESSAGE_VALUES, OWNER_MESSAGE_VALUES
from muloco_runner.memory.rank import Rank
from muloco_runner.model.logit_chunks import chunk_within


def of_passes(rank: Rank) -> dict[str, float]:
    """Bytes in the phases of one micro-batch."""
    model = rank.model
    match model:
        case ModelConfig():
            return _of_transformer(rank, model)
        case TargetModelConfig():
            return {"forward and backward": _of_target(rank, model)}
    assert_never(model)  # type: ignore[arg-type]  # the base class is open


def _of_target(rank: Rank, model: TargetModelConfig) -> float:
    """An upper bound: all that one micro-batch keeps, its logits, and all gradients, at once."""
    size = 2 if rank.run.precision == "bfloat16" else 4
    tokens = rank.placement.micro_batch_sequences * model.sequence_length
    earlier, fresh = _gradients(rank)
    # The log-softmax, its gradient and that of the logits.
    logits = 12.0 * tokens * model.vocab_size
    casts = 2.0 * model.num_params if size == 2 else 0.0
    layer = model.params_in_blocks / model.num_layers
    # A layer's gathered weights, the next one's, gradients in full, and gloo's copies; and what belongs to no layer.
    gathered = 4.0 * (4 * layer + 3 * (model.num_params - model.params_in_blocks)) if rank.sharded else 0.0
    return earlier + fresh * 4 * rank.held + tokens * model.kept_bytes_per_token + logits + casts + gathered


def _of_transformer(rank: Rank, model: ModelConfig) -> dict[str, float]:
    placement, sharded, held = rank.placement, rank.sharded, rank.held
    size = 2 if rank.run.precision == "bfloat16" else 4
    width, layers = model.width, model.num_layers
    tokens = placement.micro_batch_sequences * model.sequence_length
    embedding_params = model.vocab_size * width

    layer = tokens * _kept_per_token(model, size, placement.device)
    mask = placement.micro_batch_sequences * model.sequence_length**2 * size if rank.on_cpu else 0
    kept_layer = tokens * width * size if placement.recompute else layer
    again = layer if placement.recompute else 0
    temporaries = 2 * tokens * width * size

    # Weights in low precision: autocast keeps a cast of each, FSDP gathers them block by block.
    low_precision = 2.0 * (rank.block * layers + embedding_params) if size == 2 and not sharded else 0.0
    # A block's gathered weights, the next one's, and a third: gloo's copy, or what FSDP lets go only later.
    gathered = 3.0 * size * rank.block if sharded else 0.0

    def summed(values: float) -> float:
        """Bytes from which shards sum a gradient of that many values: in float32 while it is sent, and its rows."""
        return values * (4 + 4 / rank.shards + (4 if rank.on_cpu else size)) if sharded else 0.0

    head = 4 * embedding_params
    earlier, fresh = _gradients(rank)
    rows_of_head = fresh * head * held / rank.run.num_params
    all_layers = earlier + kept_layer * layers + mask + low_precision
    phases = {
        "head": all_layers + _of_head(rank, model, tokens, size),
        "last block": all_layers + rows_of_head + again + temporaries + gathered + (head if sharded else 0),
        "first block": earlier
        + fresh * (4 * held - rows_of_head)
        + layer
        + mask
        + low_precision
        + temporaries
        + gathered,
        "embedding": earlier + fresh * 4 * held + (0 if fresh else head),
    }
    if rank.shares_matrices and not placement.ordered:
        # Gradients are copied into messages, each made at once: the first one before most of what it takes.
        phases["last block"] += 4 * _owner_message(rank)
    if sharded:
        # One block before it, when the last weights are gathered: three blocks have no rows of a gradient yet.
        missing = rows_of_head + 4 * rank.block / rank.shards * min(3, layers)
        phases["first block"] += summed(rank.block) - fresh * missing
        phases["sum of the head"] = (
            all_layers + 2 * tokens * width * size + embedding_params * size + summed(embedding_params)
        )
        phases["sum of a block"] = phases["last block"] - head - kept_layer + summed(rank.block)
        phases["embedding"] = earlier + fresh * 4 * held + head + summed(embedding_params)
    return phases


def _of_head(rank: Rank, model: ModelConfig, tokens: int, size: int) -> float:
    """Peak bytes of the logits."""
    vocabulary, width = model.vocab_size, model.width
    chunk = chunk_within(tokens, vocabulary, rank.placement.device, rank.placement.most_chunk)
    embedding_params = vocabulary * width
    if tokens > chunk:
        # Logits and their log-softmax, which becomes their gradient; the head's gradient is there from the start.
        logits = 8.0 * chunk * vocabulary + 4 * embedding_params + tokens * width * size
        logits += 2 * embedding_params if size == 2 else 0
    else:
        # The log-softmax, its gradient and that of the logits.
        logits = 12.0 * tokens * vocabulary
    logits += tokens * width * (2 * 4 + size if rank.on_cpu else 2 * size)
    return logits + (embedding_params * size if rank.sharded else 0)


def _gradients(rank: Rank) -> tuple[int, int]:
    """Bytes of gradients before the last micro-batch; and 1 where its own are new memory, 0 where they are added."""
    if rank.has_buckets:
        return 4 * rank.held, 0
    share = rank.run.worker_batch_sequences // rank.replicas
    micro_batches = -(-share // rank.placement.micro_batch_sequences)
    if micro_batches == 1:
        return 0, 1
    if rank.placement.ordered and not rank.sharded:
        return 4 * rank.held * math.ceil(math.log2(micro_batches)), 1
    return 4 * rank.held, 0


def _kept_per_token(model: ModelConfig, size: int, device: str) -> int:
    """Bytes that the forward pass of a block keeps for its backward pass, for one token."""
    width, ffn, heads = model.width, model.ffn_width, model.num_heads
    statistics = 4 * (4 + 2 * heads + heads)
    if device == "cpu":
        # Norms made of elementary operations: each keeps its input and what it scaled, both in float32.
        return 12 * width * 4 + (7 * width + 4 * ffn) * size + statistics
    # Inputs of four norms, q and k before theirs, q, k, v, the attention, once more as wo takes it, two normed inputs.
    return (13 * width + 4 * ffn) * size + statistics


def of_sum(rank: Rank) -> float:
    """Bytes beside a replica's gradient at its peak in the sum over replicas that hold copies."""
    ordered, replicas = rank.placement.ordered, rank.replicas
    if not ordered and not rank.shares_matrices:
        return 0.0  # torch's DDP: sums lie where the gradients do
    to_all = to_owners = 0.0
    if ordered:
        # A message's gradients, every replica's for this rank's share, their sum, and what comes back.
        values = rank.held - rank.matrices if rank.shares_matrices else rank.held
        message = min(values, max(MESSAGE_VALUES, rank.model.embedding_params))
        to_all = 4 * (rank.summed - rank.held) + 4 * message * (2 + 1 / replicas + rank.staged)
    if rank.shares_matrices:
        own, owner_message = 4 * rank.matrices / replicas, 4 * _owner_message(rank)
        if ordered:
            # Every replica's part for this rank, their sum, and the next message, where a matrix may begin to fill it.
            fills_next = owner_message < 4 * rank.matrices
            to_owners = own + owner_message * (1 + 1 / replicas + fills_next)
        else:
            to_owners = own + owner_message * rank.staged
    return max(to_all, to_owners)


def _owner_message(rank: Rank) -> float:
    """Values in one message of matrices to or from their owners."""
    return rank.matrices / max(1, math.ceil(rank.matrices / OWNER_MESSAGE_VALUES))


def most_matrices_at_once(short: int) -> int:
    """Matrices of a shorter side `short` that the kernels of a GPU work on at once, at most: eight rounds of its 132
    processors, in the tiles of 256 x 128 of a triangle."""
    rows = -(-short // 256)
    return -(-8 * 132 // (rows * (rows + 1)))


def of_update(rank: Rank) -> float:
    """Bytes of the inner optimizer's step beside the gradients."""
    inner, largest = rank.run.inner_optimizer, rank.model.largest_matrices
    decay = 0.0
    if isinstance(inner, BuiltInConfig) and inner.weight_decay_form == "cautious" and (rank.on_cpu or rank.sharded):
        # Of one tensor the update, which weights it agrees with, and a factor on each; kernels for whole ones on a GPU
        # need none of these.
        decay = 9.0 * max(rank.model.embedding_params, largest.rows * largest.columns) / rank.shards
    return max(decay, _of_matrices(rank))


def _of_matrices(rank: Rank) -> float:
    """Bytes of orthogonalising beside the gradients: what working on matrices takes, and results in half precision."""
    if not rank.run.inner_optimizer.orthogonalizes:
        return 0.0
    largest, replicas = rank.model.largest_matrices, rank.replicas
    # Those of the largest shape are assigned to the ranks and worked on a few at once.
    of_rank = -(-largest.number // (rank.shards if rank.sharded else replicas))
    short, long = sorted((largest.rows, largest.columns))
    at_once = min(of_rank, 8 if rank.on_cpu else most_matrices_at_once(short))
    size = largest.rows * largest.columns
    # A CPU's results in float32, and the buffers of a thread; a GPU's X twice and four squares, in half precision.
    working = (4.0 * at_once + 7 + 4) * size if rank.on_cpu else (4 + 8 * short / long) * at_once * size
    if rank.sharded:
        # Full updates; rows of results, which leave in one round while those of the round before arrive.
        return working + (10 + 2 * rank.staged) * at_once * size
    if rank.shares_matrices:
        # An owner buffer of results. Of all buffers what is pending, what was received, one message of that in float32.
        message = _owner_message(rank)
        pending = min(rank.matrices, message * max(1, replicas * at_once * size // message))
        before = min(pending, rank.matrices - pending)
        results = 4 * at_once * size if rank.on_cpu else 0  # a GPU's kernels write them into the buffer
        transfers = 2 * pending * (1 + rank.staged) + 2 * before
        if before:
            return 2 * rank.matrices / replicas + transfers + max(working, 4 * min(message, before) + results)
        return 2 * rank.matrices / replicas + max(working, transfers + results)
    return working
