"""Bytes beside what stays in DiLoCo's outer step, and in an exchange that goes on beside inner steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

from muloco_runner.config import (
    CompressionConfig,
    DiLoCoConfig,
    LossyCompressionConfig,
    OuterMuonConfig,
    QuantisationConfig,
    TopKConfig,
)
from muloco_runner.distributed.message_sizes import MESSAGE_VALUES
from muloco_runner.memory.rank import Rank


class OuterStep:
    """Bytes of DiLoCo's outer step beside what stays."""

    def __init__(self, here: Rank, config: DiLoCoConfig) -> None:
        self.here, self.config, compression = here, config, config.compression
        self.remembers = isinstance(compression, LossyCompressionConfig) and compression.error_feedback is not None
        self.fragment = max(_fragments(here, config.streaming.num_fragments))
        """Values of the largest."""
        self.lossy = isinstance(compression, LossyCompressionConfig)
        self.by_row = not self.lossy or (
            isinstance(compression, QuantisationConfig) and compression.granularity == "row"
        )
        """Whether rows are sent apart, so that tensors may be cut."""
        self.words_are_exact = isinstance(compression, LossyCompressionConfig) and compression.exact_embeddings
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
        words, matrix = here.model.vocab_size * here.model.width, here.model.ffn_width * here.model.width
        uncut = 0 if self.by_row else matrix if self.words_are_exact else words
        message = min(values, max(MESSAGE_VALUES, uncut))
        piece = min(words, message)
        averaging = 4.0 * piece * (num_workers + 1) if num_workers > 1 else 0.0
        if not self.lossy and num_workers == workers:
            return averaging  # nothing is written that all know
        payload = (4.0 if self.words_are_exact else self.value_bytes) * message
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


def _fragments(here: Rank, num_fragments: int) -> Iterator[int]:
    """Values that lie here of each fragment: layers, the embedding with the first, the head with the last."""
    model, layers = here.model, here.model.num_layers
    words = here.held * model.vocab_size * model.width // model.num_params
    of_layers = here.held - 2 * words
    for number in range(num_fragments):
        own = sum(layer * num_fragments // layers == number for layer in range(layers))
        ends = (number == 0) + (number == num_fragments - 1)
        yield of_layers * own // layers + words * ends
