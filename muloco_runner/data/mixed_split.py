"""Several splits as one, and the order in which sequences are taken of them: a pure function of a sequence's position.

Axes: B sequences, T time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from muloco_runner.data.mixture import PERIOD

Indices = NDArray[np.int64]


class SplitPart(Protocol):
    """What a split must offer, as `muloco_runner.data.corpus.Split` says."""

    @property
    def num_tokens(self) -> int: ...

    def read(self, start: int, count: int) -> NDArray[np.integer[Any]]: ...

    def gather(self, starts: Indices, length: int) -> tuple[Indices, Indices]: ...

    def will_need(self, starts: Indices, length: int) -> None: ...


class MixedSplit:
    """The tokens of all parts laid end to end; `shares` of the sequences, in sum 1, come from each."""

    def __init__(self, parts: Sequence[SplitPart], shares: Sequence[float]) -> None:
        self.parts, self.shares = list(parts), tuple(shares)
        self.first_token = np.cumsum([0, *(part.num_tokens for part in parts)])

    @property
    def num_tokens(self) -> int:
        return int(self.first_token[-1])

    def read(self, start: int, count: int) -> NDArray[np.integer[Any]]:
        """Tokens start .. start+count, shape (count,)."""
        pieces = []
        for part, first in zip(self.parts, self.first_token[:-1].tolist(), strict=True):
            begin, end = max(start, first), min(start + count, first + part.num_tokens)
            if begin < end:
                pieces.append(part.read(begin - first, end - begin))
        return np.concatenate(pieces)

    def gather(self, starts: Indices, length: int) -> tuple[Indices, Indices]:
        """Reads sequences: see `muloco_runner.data.corpus.Split.gather`."""
        tokens_BT = np.empty((len(starts), length + 1), np.int64)
        documents_BT = np.empty((len(starts), length), np.int64)
        for number, rows in self._rows(starts):
            found = self.parts[number].gather(starts[rows] - self.first_token[number], length)
            tokens_BT[rows], documents_BT[rows] = found
        return tokens_BT, documents_BT

    def will_need(self, starts: Indices, length: int) -> None:
        """Sequences that will be gathered soon."""
        for number, rows in self._rows(starts):
            self.parts[number].will_need(starts[rows] - self.first_token[number], length)

    def _rows(self, starts: Indices) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        numbers = np.searchsorted(self.first_token, starts, side="right") - 1
        for number in np.unique(numbers).tolist():
            yield number, numbers == number


def token_counts(split: SplitPart) -> list[int]:
    """Tokens of each part; of one part where there are no parts."""
    return [part.num_tokens for part in split.parts] if isinstance(split, MixedSplit) else [split.num_tokens]


def shares_of(split: SplitPart) -> tuple[float, ...]:
    """The share of each part."""
    return split.shares if isinstance(split, MixedSplit) else (1.0,)


def part_of_positions(shares: tuple[float, ...], positions: Indices) -> tuple[Indices, Indices]:
    """The part from which each of the sequences at `positions` comes, and its position among those of that part."""
    if len(shares) == 1:
        return np.zeros_like(positions), positions
    table, before, totals = _period(shares)
    periods, offsets = np.divmod(positions, PERIOD)
    parts = table[offsets]
    return parts, periods * totals[parts] + before[offsets]


def num_validation_sequences(counts: Sequence[int], shares: tuple[float, ...], tokens: int, length: int) -> int:
    """How many sequences of `length` an evaluation on `tokens` takes: of parts with `counts` held-out tokens, in their
    shares, only as many as there are until the first of them ends."""
    wanted = min(tokens, sum(counts) - 1) // length
    parts, positions = part_of_positions(shares, np.arange(wanted, dtype=np.int64))
    # A part's last token is a target alone.
    ends = np.flatnonzero(positions >= (np.array(counts, dtype=np.int64)[parts] - 1) // length)
    return int(ends[0]) if len(ends) else wanted


@functools.cache
def _period(shares: tuple[float, ...]) -> tuple[Indices, Indices, Indices]:
    """Parts of one period's sequences, how many of its own part stand before each, and how many each part has.

    At every position the part comes next that is furthest behind its share: in any row of sequences no part is more
    than about one away from it.
    """
    wanted, counts = np.array(shares), np.zeros(len(shares), np.int64)
    table, before = np.empty(PERIOD, np.int64), np.empty(PERIOD, np.int64)
    for position in range(PERIOD):
        part = int(np.argmax(wanted * (position + 1) - counts))
        table[position], before[position] = part, counts[part]
        counts[part] += 1
    return table, before, counts
