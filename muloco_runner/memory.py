"""What a run takes of one rank's memory, from its configuration alone: standard library only, for login nodes.

Parameters, optimizer state and anchors stay; to them comes the worst moment of a step: the head with all activations
kept, the backward pass of the last or the first block, the sum over replicas, the inner optimizer, or the outer step.
Counted are tensors, as torch's allocator sees them; the driver's context, libraries and fragmentation come on top (see
`usable_bytes`), and on a CPU the copy from which a checkpoint is written.

The counts hold where a model's matrices are large beside its constants: from about a million parameters on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from muloco_runner.config import (
    CompressionConfig,
    DiLoCoConfig,
    LossyCompressionConfig,
    ModelConfig,
    MuonConfig,
    OuterMuonConfig,
    QuantisationConfig,
    RunConfig,
    TopKConfig,
)

_CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}
_TILE = 128
_MESSAGE_VALUES = 1 << 24
"""Of one message of pseudogradients, or of gradients between copies, unless a single tensor is larger."""
_SHARE_OF_DEVICE = 0.92
"""What tensors may take of a GPU; the rest is the driver's, the libraries' and lost between blocks."""


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

    def words(self, run: RunConfig) -> str:
        """How a rank holds the model."""
        held = "rows" if self.sharded else "copy" if self.replicas(run) > 1 else "whole"
        return held + (", recomputing" if self.recompute else "")


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
    here = _Rank(run, placement)
    held, workers = here.held, here.workers
    if isinstance(run.inner_optimizer, MuonConfig):
        momenta = here.matrices if here.sharded else -(-here.matrices // here.replicas)
        inner = 4 * momenta + 8 * (held - here.matrices)
    else:
        inner = 8 * held
    moments = {**_backward(here), "inner optimizer": 4.0 * held + _muon(here)}
    if here.replicas > 1 and placement.ordered and not here.sharded:
        # A message's gradients, every replica's for this rank's share, their sum, and what comes back.
        message = min(held, max(_MESSAGE_VALUES, run.model.vocab_size * run.model.width))
        moments["sum over replicas"] = 4 * held + 4 * message * (2 + 1 / here.replicas + here.staged)
    method = 0
    if isinstance(run.method, DiLoCoConfig):
        outer = _OuterStep(here, run.method)
        method = 8 * held + (4 * held * workers if outer.remembers else 0)
        moments = {name: moment + outer.under_way for name, moment in moments.items()}
        moments["outer step"] = outer.peak
    moment = max(moments, key=lambda name: moments[name])
    return MemoryEstimate(4 * held * workers, inner * workers, method, int(moments[moment]), moment)


class _Rank:
    """Numbers of one rank that several moments share."""

    def __init__(self, run: RunConfig, placement: Placement) -> None:
        self.run, self.placement, self.model = run, placement, run.model
        self.workers, self.replicas = placement.workers(run), placement.replicas(run)
        self.sharded = placement.sharded and self.replicas > 1
        self.on_cpu = placement.device == "cpu"
        parts = self.replicas if self.sharded else 1
        self.held = sum(-(-rows // parts) * columns for rows, columns in _shapes(run.model))
        """Values of one worker's model that lie here."""
        self.matrices = run.model.num_layers * sum(-(-r // parts) * c for r, c in _block_matrices(run.model))
        self.block = sum(rows * columns for rows, columns in _block_matrices(run.model))
        """Values of the matrices of a whole block."""
        self.staged = 1 if self.on_cpu else 0
        """Copies that gloo makes of what it gathers or sums; NCCL makes none."""
        self.has_buckets = not self.sharded and not placement.ordered and self.replicas > 1
        """torch's DDP keeps gradients where they are averaged, from the first step to the last."""


def _backward(here: _Rank) -> dict[str, float]:
    """Bytes at the moments of one micro-batch."""
    run, model, placement, sharded, held = here.run, here.model, here.placement, here.sharded, here.held
    size = 2 if run.precision == "bfloat16" else 4
    width, vocabulary, layers = model.width, model.vocab_size, model.num_layers
    tokens = placement.micro_batch_sequences * model.sequence_length
    share = run.worker_batch_sequences // here.replicas
    micro_batches = -(-share // placement.micro_batch_sequences)
    words = vocabulary * width

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

    chunk = chunk_tokens(vocabulary, placement.device)
    head = 4 * words
    if tokens > chunk:
        # Logits and their log-softmax, which becomes their gradient; the head's gradient is there from the start.
        logits = 8.0 * chunk * vocabulary + head + tokens * width * size
        logits += head // 2 if size == 2 else 0
    else:
        # The log-softmax, its gradient and that of the logits.
        logits = 12.0 * tokens * vocabulary
    logits += tokens * width * (2 * 4 + size if here.on_cpu else 2 * size)
    if sharded:
        logits += words * size

    if micro_batches == 1:
        earlier = 0
    elif placement.ordered and not sharded:
        earlier = 4 * held * math.ceil(math.log2(micro_batches))
    else:
        earlier = 4 * held
    fresh = 1 if micro_batches == 1 or (placement.ordered and not sharded) else 0
    """Whether gradients are new memory: else they are added to what is there."""
    if here.has_buckets:
        earlier, fresh = 4 * held, 0
    rows_of_head = fresh * head * held / run.num_params
    all_layers = earlier + kept_layer * layers + mask + narrow
    moments = {
        "head": all_layers + logits,
        "last block": all_layers + rows_of_head + again + temporaries + gathered + (head if sharded else 0),
        "first block": earlier + fresh * (4 * held - rows_of_head) + layer + mask + narrow + temporaries + gathered,
        "embedding": earlier + fresh * 4 * held + (0 if fresh else head),
    }
    if sharded:
        # One block before it, when the last weights are gathered: three blocks have no rows of a gradient yet.
        missing = rows_of_head + 4 * here.block / here.replicas * min(3, layers)
        moments["first block"] += summed(here.block) - fresh * missing
        moments["sum of the head"] = all_layers + 2 * tokens * width * size + words * size + summed(words)
        moments["sum of a block"] = moments["last block"] - head - kept_layer + summed(here.block)
        moments["embedding"] = earlier + fresh * 4 * held + head + summed(words)
    return moments


def _kept_per_token(model: ModelConfig, size: int, device: str) -> int:
    """Bytes that the forward pass of a block keeps for its backward pass, for one token."""
    width, ffn, heads = model.width, model.ffn_width, model.num_heads
    statistics = 4 * (4 + 2 * heads + heads)
    if device == "cpu":
        # Norms made of elementary operations: each keeps its input and what it scaled, both in float32.
        return 12 * width * 4 + (7 * width + 4 * ffn) * size + statistics
    # Inputs of four norms, q and k before theirs, q, k, v, the attention, once more as wo takes it, two normed inputs.
    return (13 * width + 4 * ffn) * size + statistics


def _muon(here: _Rank) -> float:
    """Bytes of orthogonalising beside the gradients: what working on matrices takes, and results in half precision."""
    if not isinstance(here.run.inner_optimizer, MuonConfig):
        return 0.0
    width, ffn, replicas = here.model.width, here.model.ffn_width, here.replicas
    # Of the largest shape there are two a block, dealt to the ranks and worked on a few at once.
    of_rank = -(-2 * here.model.num_layers // replicas)
    tiles = -(-width // 128)
    at_once = min(of_rank, 8 if here.on_cpu else -(-1056 * 2 // (tiles * (tiles + 1))))
    # Results in float32, and buffers: a GPU's for all of them, a CPU thread's for one.
    working = 4 * at_once + 7 + 4 if here.on_cpu else 11 * at_once
    if here.sharded:
        # Whole updates; rows of results, which leave in one round while those of the round before arrive.
        working += (10 + 2 * here.staged) * at_once
    elif replicas > 1:
        # Results of two rounds, of every rank: those that have come are applied in float32.
        arriving = 2 * replicas * at_once * (1 + here.staged)
        working = 2 * at_once + arriving + max(working, 6 * replicas * at_once)
    return float(working * width * ffn)


class _OuterStep:
    """Bytes of DiLoCo's outer step beside what stays."""

    def __init__(self, here: _Rank, config: DiLoCoConfig) -> None:
        self.here, self.config, compression = here, config, config.compression
        self.remembers = isinstance(compression, LossyCompressionConfig) and compression.error_feedback is not None
        self.fragment = max(_fragments(here, config.streaming.num_fragments))
        """Values of the largest."""
        self.lossy = isinstance(compression, LossyCompressionConfig)
        self.by_row = not self.lossy or (
            isinstance(compression, QuantisationConfig) and compression.granularity == "row"
        )
        """Whether rows are sent apart, so that tensors may be cut."""
        self.value_bytes = _bytes_of_value(compression)

    @property
    def peak(self) -> float:
        here = self.here
        # The means stay until all fragments that arrive at a step have done so: at the last step all do.
        means = 4 * here.held + (4 * here.held if here.has_buckets else 0)
        return means + max(4 * self.fragment * here.workers + self._exchange(), self._taking())

    @property
    def under_way(self) -> float:
        """While inner steps go on: pseudogradients and means of the fragments that have left, and one's exchange."""
        streaming = self.config.streaming
        if not streaming.delay_steps:
            return 0.0
        most = math.ceil(streaming.delay_steps * streaming.num_fragments / self.config.sync_interval)
        return 4.0 * self.fragment * most * (self.here.workers + 1) + self._exchange()

    def _taking(self) -> float:
        streaming, model = self.config.streaming, self.here.model
        taking = 8.0 * self.fragment if streaming.mixing else 0.0
        if isinstance(self.config.outer_optimizer, OuterMuonConfig):
            updates = 4.0 * self.here.matrices / streaming.num_fragments
            # The momenta of the most frequent shape; or, of shards, all of them on their way to their owners.
            momenta = updates * 2 * model.width * model.ffn_width / self.here.block
            taking = max(taking, updates + (4 * updates if self.here.sharded else momenta))
        return taking

    def _exchange(self) -> float:
        """Temporaries of the exchange of one fragment beside pseudogradients and mean."""
        here = self.here
        whole = here.sharded and not self.by_row
        # With whole tensors each is at one owner: what comes to the one that has most.
        owned = max(self.fragment, here.model.vocab_size * here.model.width) if whole else self.fragment
        message = self._message(owned)
        if not whole:
            return message
        gathering = 8.0 * self.fragment + 8 * owned
        scattering = 16.0 * owned + 4 * self.fragment
        return max(gathering, 8 * owned + message, scattering)

    def _message(self, values: int) -> float:
        """Of the largest message of a list of that many values."""
        here, num_workers, workers = self.here, self.here.run.num_workers, self.here.workers
        tensors = [here.model.vocab_size * here.model.width, here.model.width * here.model.ffn_width]
        largest = min(values, tensors[0])
        message = min(values, _MESSAGE_VALUES if self.by_row else max(_MESSAGE_VALUES, largest))
        piece = min(largest, message)
        averaging = 4.0 * piece * (num_workers + 1) if num_workers > 1 else 0.0
        if not self.lossy and num_workers == workers:
            return averaging  # nothing is written that all know
        payload = self.value_bytes * message
        encoding = (12.0 if isinstance(self.config.compression, TopKConfig) else 6.0) * piece if self.lossy else 0.0
        remembering = 4.0 * message if self.remembers else 0.0
        sending = payload * workers + encoding + remembering
        if self.lossy and getattr(self.config.compression, "exchange", "all_gather") == "all_gather":
            # Every worker's payload, twice, and decoded.
            received = payload * (2 * num_workers + workers) + 4.0 * num_workers * message
            return max(sending, received + max(averaging, 8.0 * piece))
        # What is sent, what has come, a payload; the means of the shares of the workers held here, and their payloads.
        share = workers / num_workers
        arrived = payload * workers * (2 + share) + 4 * message * share
        decoded = 4.0 * message if self.lossy else 0.0
        return max(sending + 2 * payload * workers, arrived + decoded + averaging, arrived + payload * (2 + 2 * share))


def _bytes_of_value(compression: CompressionConfig) -> float:
    """In a payload."""
    match compression:
        case QuantisationConfig():
            return compression.bits / 8
        case TopKConfig():
            return compression.fraction * (4 + (4 if compression.bits is None else compression.bits / 8))
    return 4.0


def _fragments(here: _Rank, num_fragments: int) -> Iterator[int]:
    """Values that lie here of each fragment: layers, the embedding with the first, the head with the last."""
    model, layers = here.model, here.model.num_layers
    words = here.held * model.vocab_size * model.width // model.num_params
    of_layers = here.held - 2 * words
    for number in range(num_fragments):
        own = sum(layer * num_fragments // layers == number for layer in range(layers))
        ends = (number == 0) + (number == num_fragments - 1)
        yield of_layers * own // layers + words * ends


def _block_matrices(model: ModelConfig) -> list[tuple[int, int]]:
    width, ffn = model.width, model.ffn_width
    return [(width, width)] * 4 + [(ffn, width)] * 2 + [(width, ffn)]


def _shapes(model: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of every parameter."""
    gains = [(model.width, 1)] * 4 + [(model.head_width, 1)] * 2
    block = _block_matrices(model) + gains
    return [(model.vocab_size, model.width)] * 2 + block * model.num_layers + [(model.width, 1)]
