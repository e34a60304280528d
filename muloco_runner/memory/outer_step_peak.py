"""Bytes of a method's outer steps: what stays, the peak, and exchanges that are pending while inner steps go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from muloco_runner.config import METHODS, DataParallelConfig, DiLoCoConfig, MethodConfig, PrimalAveragingConfig
from muloco_runner.config.variants import complete
from muloco_runner.distributed.message_sizes import MESSAGE_VALUES
from muloco_runner.memory.rank import Rank


class OuterStep(Protocol):
    """Bytes that a method takes on one rank for its outer steps."""

    @property
    def state(self) -> int:
        """What stays: anchor, outer optimizer state, error memory."""

    @property
    def peak(self) -> float:
        """Beside what stays, in an outer step."""

    @property
    def in_flight(self) -> float:
        """Beside what stays, in inner steps while exchanges are pending."""

    @property
    def updating(self) -> float:
        """Beside what stays, while the inner optimizer steps."""


class NoOuterStep:
    """Data parallel takes none."""

    state, peak, in_flight, updating = 0, 0.0, 0.0, 0.0

    def __init__(self, rank: Rank, config: DataParallelConfig) -> None:
        """Nothing depends on them."""


class DiLoCoOuterStep:
    """An anchor, an outer optimizer, and the exchange of one fragment after the other."""

    updating = 0.0

    def __init__(self, rank: Rank, config: DiLoCoConfig) -> None:
        self.rank, self.config, self.compression = rank, config, config.compression
        self.remembers = self.compression.error_feedback is not None
        self.fragment = max(_fragments(rank, config.streaming.num_fragments))
        """Values of the largest."""

    @property
    def state(self) -> int:
        held, workers = self.rank.held, self.rank.workers
        return (4 + self.config.outer_optimizer.state_bytes) * held + (4 * held * workers if self.remembers else 0)

    @property
    def peak(self) -> float:
        rank = self.rank
        # Means stay until all exchanges that complete at a step have done so: at the last step all do.
        means = 4 * rank.held + (4 * rank.held if rank.has_buckets else 0)
        return means + max(4 * self.fragment * rank.workers + self._exchange(), self._update())

    @property
    def in_flight(self) -> float:
        """Pseudogradients and means of the fragments whose exchange is pending, and the temporaries of one exchange."""
        streaming = self.config.streaming
        if not streaming.delay_steps:
            return 0.0
        most = math.ceil(streaming.delay_steps * streaming.num_fragments / self.config.sync_interval)
        return 4.0 * self.fragment * most * (self.rank.workers + 1) + self._exchange()

    def _update(self) -> float:
        """Temporaries of the outer optimizer, and of mixing the new anchor with workers' own parameters."""
        streaming, model = self.config.streaming, self.rank.model
        mixing = 8.0 * self.fragment if streaming.mixing else 0.0
        optimizer = self.config.outer_optimizer
        if not optimizer.orthogonalizes:
            return max(mixing, float(optimizer.step_bytes * self.fragment))
        updates = 4.0 * self.rank.matrices / streaming.num_fragments
        # The momenta of the most frequent shape; or, of shards, all of them on the way to their owners.
        largest = model.largest_matrices
        momenta = updates * largest.number * largest.rows * largest.columns / max(1, model.num_hidden_params)
        return max(mixing, updates + (3 * updates if self.rank.sharded else momenta))

    def _exchange(self) -> float:
        """Temporaries of the exchange of one fragment beside pseudogradients and mean."""
        rank = self.rank
        if not rank.sharded or self.compression.sends_rows_apart:
            return self._message(self.fragment)
        # Each tensor is in full at one owner: what comes to the one that has most.
        owned = max(self.fragment, rank.model.embedding_params)
        gathering = 4.0 * self.fragment + 8 * owned
        scattering = 12.0 * owned + 4 * self.fragment
        return max(gathering, 8 * owned + self._message(owned), scattering)

    def _message(self, values: int) -> float:
        """Temporaries of the largest message of a list of that many values."""
        rank, compression = self.rank, self.compression
        num_workers, workers = rank.run.num_workers, rank.workers
        embedding, largest = rank.model.embedding_params, rank.model.largest_matrices
        matrix = largest.rows * largest.columns
        uncut = 0 if compression.sends_rows_apart else matrix if compression.sends_embeddings_exactly else embedding
        message = min(values, max(MESSAGE_VALUES, uncut))
        tensor = min(embedding, message)
        averaging = 4.0 * tensor * (num_workers + 1) if num_workers > 1 else 0.0
        if compression.is_exact and num_workers == workers:
            return averaging  # no payload is written where one rank holds all workers
        value_bytes = 4.0 if compression.sends_embeddings_exactly else compression.bits_per_value / 8
        payload, decoded = value_bytes * message, 0.0 if compression.is_exact else 4.0 * message
        remembering = 4.0 * message if self.remembers else 0.0
        sending = payload * workers + compression.encoding_bytes * tensor + remembering
        if not compression.reduces_and_scatters:
            # Every worker's payload, twice, and decoded.
            received = payload * (2 * num_workers + workers) + 4.0 * num_workers * message
            return max(sending, received + max(averaging, 8.0 * tensor))
        # What is sent, twice, and what is received; then that, the means of the local workers' shares, and their
        # payloads; then those, twice, as sent to every worker, and all means.
        share = workers / num_workers
        averaged = payload * (workers + share) + 4 * message * share + decoded + averaging
        return max(sending + 2 * payload * workers, averaged, payload * (2 + 2 * share))


class PrimalAveragingStep:
    """z of each worker, a copy of the one that is updated, and between several workers DiLoCo's exchange."""

    def __init__(self, rank: Rank, config: PrimalAveragingConfig) -> None:
        self.updating = 4.0 * rank.held
        exchange = None if config.of_z is None else DiLoCoOuterStep(rank, config.of_z)
        self.state = 4 * rank.held * rank.workers + (0 if exchange is None else exchange.state)
        # To be evaluated, every worker's x is made at once.
        self.peak = max(0.0 if exchange is None else exchange.peak, 4.0 * rank.held * rank.workers)
        self.in_flight = 0.0


def _fragments(rank: Rank, num_fragments: int) -> Iterator[int]:
    """Values of each fragment that the rank holds, at most: layers, and at either end an embedding or head."""
    model, layers = rank.model, rank.model.num_layers
    if num_fragments == 1:
        yield rank.held
        return
    embedding = rank.held * model.embedding_params // model.num_params
    of_layers = rank.held - rank.held * (model.num_params - model.params_in_blocks) // model.num_params
    for number in range(num_fragments):
        own = sum(layer * num_fragments // layers == number for layer in range(layers))
        ends = (number == 0) + (number == num_fragments - 1)
        yield of_layers * own // layers + embedding * ends


_OUTER_STEPS: dict[type[MethodConfig], Callable[[Rank, Any], OuterStep]] = complete(
    METHODS,
    {DataParallelConfig: NoOuterStep, DiLoCoConfig: DiLoCoOuterStep, PrimalAveragingConfig: PrimalAveragingStep},
)


def outer_step_of(rank: Rank) -> OuterStep:
    """What the method of the rank's run takes."""
    return _OUTER_STEPS[type(rank.run.method)](rank, rank.run.method)
