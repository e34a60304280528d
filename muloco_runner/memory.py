"""What a run takes of one rank's memory, from its configuration alone: standard library only, for login nodes.

Parameters, optimizer state and anchors stay; to them comes the worst moment of a step: the head with all activations
kept, the backward pass of the last or the first block, the inner optimizer, or the outer step. Counted are tensors, as
torch's allocator sees them; the driver's context, libraries and fragmentation come on top (see `usable_bytes`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from muloco_runner.config import DiLoCoConfig, ExecutionConfig, ModelConfig, MuonConfig, RunConfig

_CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}
_TILE = 128
_MESSAGE_VALUES = 1 << 24
"""Of one message of pseudogradients."""
_SHARE_OF_DEVICE = 0.92
"""What tensors may take of a GPU; the rest is the driver's, the libraries' and lost between blocks."""
_CPU_TOKENS = 8192
"""On a CPU larger micro-batches gain nothing."""
_GPU_TOKENS = 65536
"""On a GPU larger micro-batches gain nothing."""


@dataclass(frozen=True)
class Placement:
    """How a run is spread and computed; none of it changes its result."""

    num_ranks: int = 1
    sharded: bool = False
    recompute: bool = False
    micro_batch_sequences: int = 1
    device: str = "cuda"
    """cpu or cuda."""
    ordered: bool = False
    """Whether micro-batches are summed in one order (`ExecutionConfig.reduction`)."""

    def replicas(self, run: RunConfig) -> int:
        return max(1, self.num_ranks // run.num_workers)

    def workers(self, run: RunConfig) -> int:
        """Held by one rank."""
        return max(1, run.num_workers // self.num_ranks)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank."""

    parameters: int
    inner_optimizer: int
    method: int
    """Anchor, outer momentum and error memory."""
    step: int
    """Gradients, activations and temporaries at the worst moment of a step."""
    moment: str
    """Which moment that is."""

    @property
    def total(self) -> int:
        return self.parameters + self.inner_optimizer + self.method + self.step


def chunk_tokens(vocab_size: int, device: str) -> int:
    """Tokens whose logits are held at once: on a GPU more, where each chunk's pass over the head's gradient costs."""
    tokens = _CHUNK_LOGITS.get(device, _CHUNK_LOGITS["cuda"]) // vocab_size
    # Whole tiles of the product where there are some.
    return tokens // _TILE * _TILE or max(1, tokens)


def usable_bytes(device_bytes: int) -> int:
    """Of a GPU's memory, for tensors."""
    return int(_SHARE_OF_DEVICE * device_bytes)


def estimate_memory(run: RunConfig, placement: Placement) -> MemoryEstimate:
    """Peak bytes of the tensors that one rank holds while it trains."""
    model, workers, replicas = run.model, placement.workers(run), placement.replicas(run)
    sharded = placement.sharded and replicas > 1
    held = sum(_local(rows, replicas if sharded else 1) * columns for rows, columns in _shapes(model))
    matrices = sum(_local(r, replicas if sharded else 1) * c for r, c in _block_matrices(model)) * model.num_layers

    if isinstance(run.inner_optimizer, MuonConfig):
        momenta = matrices if sharded else -(-matrices // replicas)
        inner = 4 * momenta + 8 * (held - matrices)
    else:
        inner = 8 * held
    method = 0
    if isinstance(run.method, DiLoCoConfig):
        method = 8 * held + (4 * held * workers if getattr(run.method.compression, "error_feedback", None) else 0)

    moments = _backward(run, placement, sharded, held)
    moments["inner optimizer"] = 4 * held
    if isinstance(run.inner_optimizer, MuonConfig):
        # What working on a matrix takes, and the results: of a whole shape on one rank; of two rounds, of a matrix from
        # every rank, between copies; of two rounds, in rows of one matrix, between shards.
        largest = model.width * model.ffn_width
        between_ranks = 12 if sharded else 4 * replicas
        results = 8 * model.num_layers if replicas == 1 else between_ranks
        moments["inner optimizer"] += (results + 16) * largest
    if isinstance(run.method, DiLoCoConfig):
        fragments = run.method.streaming.num_fragments if run.method.streaming is not None else 1
        # Pseudogradients and their mean; then a message of each worker, sent and read, or the next anchor and velocity.
        message = min(held // fragments, _MESSAGE_VALUES) * (8 * run.num_workers + 12)
        moments["outer step"] = 4 * held * (workers + 1) // fragments + max(message, 12 * held // fragments)
    moment = max(moments, key=lambda name: moments[name])
    return MemoryEstimate(4 * held * workers, inner * workers, method, int(moments[moment]), moment)


def _backward(run: RunConfig, placement: Placement, sharded: bool, held: int) -> dict[str, float]:
    """Bytes at the moments of one micro-batch."""
    model = run.model
    size = 2 if run.precision == "bfloat16" else 4
    width, vocabulary, layers = model.width, model.vocab_size, model.num_layers
    tokens = placement.micro_batch_sequences * model.sequence_length
    share = run.worker_batch_sequences // placement.replicas(run)
    micro_batches = -(-share // placement.micro_batch_sequences)
    block = sum(rows * columns for rows, columns in _block_matrices(model))

    layer = tokens * _kept_per_token(model, size, placement.device)
    mask = placement.micro_batch_sequences * model.sequence_length**2 * size if placement.device == "cpu" else 0
    kept = (tokens * width * size if placement.recompute else layer) * layers + mask
    again = layer if placement.recompute else 0
    temporaries = 2 * tokens * width * size
    # Weights in the narrow dtype: autocast keeps a cast of each, FSDP gathers them block by block.
    narrow = 0.0
    if sharded:
        narrow = 2.0 * size * block
    elif size == 2:
        narrow = 2.0 * (block * layers + vocabulary * width)

    chunk = chunk_tokens(vocabulary, placement.device)
    head = 4 * vocabulary * width
    if tokens > chunk:
        # Logits and their log-softmax, which becomes their gradient; the head's gradient is there from the start.
        logits = 8 * chunk * vocabulary + head + tokens * width * size
        logits += head // 2 if size == 2 else 0
    else:
        # The log-softmax, its gradient and that of the logits.
        logits = 12 * tokens * vocabulary
    logits += tokens * width * (2 * 4 + size if placement.device == "cpu" else 2 * size)
    if sharded:
        logits += vocabulary * width * size

    if micro_batches == 1:
        earlier = 0
    elif placement.ordered and not sharded:
        earlier = 4 * held * math.ceil(math.log2(micro_batches))
    else:
        earlier = 4 * held
    if not sharded and not placement.ordered and placement.replicas(run) > 1:
        earlier = 4 * held  # DDP's buckets are there before the first gradient is
    fresh = 1 if micro_batches == 1 or (placement.ordered and not sharded) else 0
    gathered_gradients = (4 + size) * 2 * block if sharded else 0
    own = held / run.num_params
    return {
        "head": earlier + kept + narrow + logits,
        "last block": earlier + fresh * head * own + kept + again + narrow + temporaries + gathered_gradients,
        "first block": earlier
        + fresh * 4 * (held - vocabulary * width * own)
        + layer
        + mask
        + narrow
        + temporaries
        + gathered_gradients,
        "embedding": earlier + fresh * 4 * held + (3 * head if sharded else (0 if fresh else head)),
    }


def _kept_per_token(model: ModelConfig, size: int, device: str) -> int:
    """Bytes that the forward pass of a block keeps for its backward pass, for one token."""
    width, ffn, heads = model.width, model.ffn_width, model.num_heads
    statistics = 4 * (4 + 2 * heads + heads)
    if device == "cpu":
        # Norms made of elementary operations: each keeps its input and what it scaled, both in float32.
        return 12 * width * 4 + (7 * width + 4 * ffn) * size + statistics
    return (12 * width + 4 * ffn) * size + statistics


def _block_matrices(model: ModelConfig) -> list[tuple[int, int]]:
    width, ffn = model.width, model.ffn_width
    return [(width, width)] * 4 + [(ffn, width)] * 2 + [(width, ffn)]


def _shapes(model: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of every parameter."""
    gains = [(model.width, 1)] * 4 + [(model.head_width, 1)] * 2
    block = _block_matrices(model) + gains
    return [(model.vocab_size, model.width)] * 2 + block * model.num_layers + [(model.width, 1)]


def _local(rows: int, replicas: int) -> int:
    return -(-rows // replicas)


def choose_placement(
    run: RunConfig, execution: ExecutionConfig, num_ranks: int, device: str, device_bytes: int | None
) -> Placement:
    """The first of copies, copies with recomputing, shards, shards with recomputing that fits, as far as `execution`
    leaves the choice; and the largest micro-batch that fits then, up to where larger ones gain nothing.

    Where nothing fits, the leanest. `device_bytes` None sets no limit.
    """
    replicas = max(1, num_ranks // run.num_workers)
    limit = math.inf if device_bytes is None else usable_bytes(device_bytes)
    choices = {"none": [False], "full": [True], "auto": [False, True]}[execution.sharding]
    shardings = choices if replicas > 1 else [False]
    given = execution.activation_checkpointing
    recomputings = [False, True] if given is None else [given]
    ordered = device == "cpu" if execution.reduction == "auto" else execution.reduction == "ordered"
    share = max(1, run.worker_batch_sequences // replicas)
    placements = [
        Placement(num_ranks, sharded, recompute, sequences, device, ordered)
        for sharded in shardings
        for recompute in recomputings
        for sequences in _micro_batches(execution, min(share, _enough(run, device)), share)
    ]
    fitting = (p for p in placements if estimate_memory(run, p).total <= limit)
    placement = next(fitting, placements[-1])
    halved = max(1, placement.micro_batch_sequences >> execution.memory_halvings)
    return dataclasses.replace(placement, micro_batch_sequences=halved)


def _enough(run: RunConfig, device: str) -> int:
    """Sequences in a micro-batch beyond which nothing is gained."""
    return max(1, (_CPU_TOKENS if device == "cpu" else _GPU_TOKENS) // run.model.sequence_length)


def _micro_batches(execution: ExecutionConfig, largest: int, share: int) -> list[int]:
    """Sizes to try: the one that was asked for, else `largest` and its halves."""
    if execution.micro_batch_sequences is not None:
        return [min(execution.micro_batch_sequences, share)]
    return [largest >> halvings for halvings in range(largest.bit_length())]
