"""Bytes beside what stays at the moments of an inner step: one micro-batch's passes, and the inner optimizer."""

from __future__ import annotations

import math

from muloco_runner.config import ModelConfig, MuonConfig
from muloco_runner.distributed.message_sizes import MESSAGE_VALUES, OWNER_MESSAGE_VALUES
from muloco_runner.memory.rank import Rank
from muloco_runner.model.logit_chunks import chunk_tokens


def of_passes(here: Rank) -> dict[str, float]:
    """Bytes at the moments of one micro-batch."""
    model, placement, sharded, held = here.model, here.placement, here.sharded, here.held
    size = 2 if here.run.precision == "bfloat16" else 4
    width, layers = model.width, model.num_layers
    tokens = placement.micro_batch_sequences * model.sequence_length
    words = model.vocab_size * width

    layer = tokens * _kept_per_token(model, size, placement.device)
    mask = placement.micro_batch_sequences * model.sequence_length**2 * size if here.on_cpu else 0
    kept_layer = tokens * width * size if placement.recompute else layer
    again = layer if placement.recompute else 0
    temporaries = 2 * tokens * width * size

    # Weights in the narrow dtype: autocast keeps a cast of each, FSDP gathers them block by block.
    narrow = 2.0 * (here.block * layers + words) if size == 2 and not sharded else 0.0
    # A block's gathered weights, the next one's, and a third: gloo's copy, or what FSDP lets go only later.
    gathered = 3.0 * size * here.block if sharded else 0.0

    def summed(values: float) -> float:
        """Bytes from which shards sum a gradient of that many values: in float32 on its way, and its rows."""
        return values * (4 + 4 / here.replicas + (4 if here.on_cpu else size)) if sharded else 0.0

    head = 4 * words
    earlier, fresh = _gradients(here)
    rows_of_head = fresh * head * held / here.run.num_params
    all_layers = earlier + kept_layer * layers + mask + narrow
    moments = {
        "head": all_layers + _of_head(here, tokens, size),
        "last block": all_layers + rows_of_head + again + temporaries + gathered + (head if sharded else 0),
        "first block": earlier + fresh * (4 * held - rows_of_head) + layer + mask + narrow + temporaries + gathered,
        "embedding": earlier + fresh * 4 * held + (0 if fresh else head),
    }
    if here.shares_muon and not placement.ordered:
        # Gradients are copied into messages, each made as a whole: the first one before most of what it takes.
        moments["last block"] += 4 * _lane_message(here)
    if sharded:
        # One block before it, when the last weights are gathered: three blocks have no rows of a gradient yet.
        missing = rows_of_head + 4 * here.block / here.replicas * min(3, layers)
        moments["first block"] += summed(here.block) - fresh * missing
        moments["sum of the head"] = all_layers + 2 * tokens * width * size + words * size + summed(words)
        moments["sum of a block"] = moments["last block"] - head - kept_layer + summed(here.block)
        moments["embedding"] = earlier + fresh * 4 * held + head + summed(words)
    return moments


def _of_head(here: Rank, tokens: int, size: int) -> float:
    """Bytes of the logits' worst moment."""
    vocabulary, width = here.model.vocab_size, here.model.width
    chunk, words = chunk_tokens(vocabulary, here.placement.device), vocabulary * width
    if tokens > chunk:
        # Logits and their log-softmax, which becomes their gradient; the head's gradient is there from the start.
        logits = 8.0 * chunk * vocabulary + 4 * words + tokens * width * size
        logits += 2 * words if size == 2 else 0
    else:
        # The log-softmax, its gradient and that of the logits.
        logits = 12.0 * tokens * vocabulary
    logits += tokens * width * (2 * 4 + size if here.on_cpu else 2 * size)
    return logits + (words * size if here.sharded else 0)


def _gradients(here: Rank) -> tuple[int, int]:
    """Bytes of gradients before the last micro-batch; and 1 where its own are new memory, 0 where they are added."""
    if here.has_buckets:
        return 4 * here.held, 0
    share = here.run.worker_batch_sequences // here.replicas
    micro_batches = -(-share // here.placement.micro_batch_sequences)
    if micro_batches == 1:
        return 0, 1
    if here.placement.ordered and not here.sharded:
        return 4 * here.held * math.ceil(math.log2(micro_batches)), 1
    return 4 * here.held, 0


def _kept_per_token(model: ModelConfig, size: int, device: str) -> int:
    """Bytes that the forward pass of a block keeps for its backward pass, for one token."""
    width, ffn, heads = model.width, model.ffn_width, model.num_heads
    statistics = 4 * (4 + 2 * heads + heads)
    if device == "cpu":
        # Norms made of elementary operations: each keeps its input and what it scaled, both in float32.
        return 12 * width * 4 + (7 * width + 4 * ffn) * size + statistics
    # Inputs of four norms, q and k before theirs, q, k, v, the attention, once more as wo takes it, two normed inputs.
    return (13 * width + 4 * ffn) * size + statistics


def of_sum(here: Rank) -> float:
    """Bytes beside a replica's gradient at the worst moment of its way into the sum over replicas that hold copies."""
    ordered, replicas = here.placement.ordered, here.replicas
    if not ordered and not here.shares_muon:
        return 0.0  # torch's DDP: sums lie where the gradients do
    to_all = to_owners = 0.0
    if ordered:
        # A message's gradients, every replica's for this rank's share, their sum, and what comes back.
        values = here.held - here.matrices if here.shares_muon else here.held
        message = min(values, max(MESSAGE_VALUES, here.model.vocab_size * here.model.width))
        to_all = 4 * (here.summed - here.held) + 4 * message * (2 + 1 / replicas + here.staged)
    if here.shares_muon:
        own, lane_message = 4 * here.matrices / replicas, 4 * _lane_message(here)
        if ordered:
            # Every replica's part for this rank, their sum, and the next message, where a matrix may begin to fill it.
            fills_next = lane_message < 4 * here.matrices
            to_owners = own + lane_message * (1 + 1 / replicas + fills_next)
        else:
            to_owners = own + lane_message * here.staged
    return max(to_all, to_owners)


def _lane_message(here: Rank) -> float:
    """Values in one message of matrices to or from their owners."""
    return here.matrices / max(1, math.ceil(here.matrices / OWNER_MESSAGE_VALUES))


def of_muon(here: Rank) -> float:
    """Bytes of orthogonalising beside the gradients: what working on matrices takes, and results in half precision."""
    if not isinstance(here.run.inner_optimizer, MuonConfig):
        return 0.0
    width, ffn, replicas = here.model.width, here.model.ffn_width, here.replicas
    # Of the largest shape there are two a block, assigned to the ranks and worked on a few at once.
    of_rank = -(-2 * here.model.num_layers // replicas)
    tiles = -(-width // 128)
    at_once = min(of_rank, 8 if here.on_cpu else -(-1056 * 2 // (tiles * (tiles + 1))))
    # Results in float32, and buffers: a GPU's for all of them, a CPU thread's for one.
    size = width * ffn
    working = (4.0 * at_once + 7 + 4 if here.on_cpu else 11.0 * at_once) * size
    if here.sharded:
        # Whole updates; rows of results, which leave in one round while those of the round before arrive.
        return working + (10 + 2 * here.staged) * at_once * size
    if here.shares_muon:
        # An owner buffer of results. Of all buffers what is pending, what came before, one message of it in float32.
        message = _lane_message(here)
        on_its_way = min(here.matrices, message * max(1, replicas * at_once * size // message))
        before = min(on_its_way, here.matrices - on_its_way)
        results = 4 * at_once * size
        travelling = 2 * on_its_way * (1 + here.staged) + 2 * before
        if before:
            return 2 * here.matrices / replicas + travelling + max(working, 4 * min(message, before) + results)
        return 2 * here.matrices / replicas + max(working, travelling + results)
    return working
