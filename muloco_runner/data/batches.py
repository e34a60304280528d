"""Batches as a pure function of (seed, step, worker): resuming is seeking, and no order is ever stored.

The training split is cut into sequences; a keyed permutation of their numbers, computed and not stored, shuffles every
epoch anew. The global batch of a step is the same whatever the number of workers; each worker gets its own slice of it.
Axes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muloco_runner.config import RunConfig
from muloco_runner.data.corpus import Corpus, Split
from muloco_runner.data.mixed_split import num_validation_sequences, part_of_positions, shares_of, token_counts

_ROUNDS = 4


@dataclass(frozen=True)
class Batch:
    """Sequences of one forward pass; each tensor has shape (B, T)."""

    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor

    def __len__(self) -> int:
        return len(self.tokens_BT)

    def split(self, micro_batch: int) -> list[Batch]:
        parts = zip(
            self.tokens_BT.split(micro_batch),
            self.targets_BT.split(micro_batch),
            self.documents_BT.split(micro_batch),
            strict=True,
        )
        return [Batch(*part) for part in parts]


def one_of_each_size(batches: Sequence[Batch]) -> list[Batch]:
    """One batch of each number of sequences: what a compiled model compiles for."""
    return list({len(batch): batch for batch in batches}.values())


class TrainingData:
    """The training batches of one run."""

    def __init__(self, corpus: Corpus, run: RunConfig, device: torch.device) -> None:
        self.split, self.run, self.device = corpus.train, run, device
        self.length = run.model.sequence_length
        counts = np.array(token_counts(self.split), dtype=np.int64)
        self._sizes = (counts - 1) // self.length
        """Sequences of each part of a mixture, or of the only one."""
        self._first_token = np.cumsum(counts) - counts
        self.num_sequences = int(self._sizes.sum())
        assert self._sizes.min() >= 1
        self._ahead: dict[tuple[int, int], NDArray[np.int64]] = {}
        """First tokens of the sequences of a (step, worker): known one step early, so that they can be fetched."""

    def worker_batch(self, step: int, worker: int, replica: int = 0, replicas: int = 1) -> Batch:
        """The sequences of `worker` at inner step `step` (both from 0), B/K tokens, or one replica's share of them."""
        starts = self._ahead.pop((step, worker), None)
        if starts is None:
            starts = self._starts(step, worker, replica, replicas)
        following = self._starts(step + 1, worker, replica, replicas)
        self._ahead[step + 1, worker] = following
        self.split.will_need(following, self.length)
        return _gather(self.split, starts, self.length, self.device)

    def _starts(self, step: int, worker: int, replica: int, replicas: int) -> NDArray[np.int64]:
        size = self.run.worker_batch_sequences
        share = size // replicas
        first = step * self.run.global_batch_sequences + worker * size + replica * share
        parts, positions = part_of_positions(shares_of(self.split), np.arange(first, first + share, dtype=np.int64))
        starts = np.empty_like(positions)
        for part in np.unique(parts).tolist():
            own = parts == part
            numbers = self._shuffled(positions[own], int(self._sizes[part]))
            starts[own] = self._first_token[part] + numbers * self.length
        return starts

    def sequence_numbers(self, first: int, count: int) -> NDArray[np.int64]:
        """Numbers of the sequences at positions first .. first+count of the endless shuffled stream of one split."""
        return self._shuffled(np.arange(first, first + count, dtype=np.int64), self.num_sequences)

    def _shuffled(self, positions: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        epochs = positions // size
        numbers = np.empty_like(positions)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            key = (self.run.seed << 32) + int(epoch)
            numbers[in_epoch] = permute(positions[in_epoch] % size, size, key)
        return numbers


def validation_batch(corpus: Corpus, run: RunConfig, device: torch.device) -> Batch:
    """The fixed evaluation set: the first `data.validation_tokens` held-out tokens, in sequences; of a mixture in its
    shares, as far as the first of its parts reaches; all there are where fewer are held out."""
    return evaluation_batch(corpus.validation, run, device)


def evaluation_batch(split: Split, run: RunConfig, device: torch.device) -> Batch:
    """The same of any split of held-out text."""
    length = run.model.sequence_length
    counts, shares = token_counts(split), shares_of(split)
    first_tokens = np.cumsum(counts, dtype=np.int64) - np.array(counts, dtype=np.int64)
    count = num_validation_sequences(counts, shares, run.data.validation_tokens, length)
    assert count >= 1
    parts, positions = part_of_positions(shares, np.arange(count, dtype=np.int64))
    starts = first_tokens[parts] + positions * length
    return _gather(split, starts, length, device)


def permute(indices: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """A keyed bijection of 0 .. size-1, applied to `indices`: a Feistel network walked until it lands inside."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    round_keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    values = indices.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> shift, values[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        values[outside] = (left << shift) | right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _gather(split: Split, starts: NDArray[np.int64], length: int, device: torch.device) -> Batch:
    tokens, documents = (torch.from_numpy(array) for array in split.gather(starts, length))
    if device.type == "cuda":
        # From pinned memory the copy does not wait for the steps that the device has still to do.
        tokens, documents = (t.pin_memory().to(device, non_blocking=True) for t in (tokens, documents))
    return Batch(tokens[:, :-1], tokens[:, 1:], documents)
