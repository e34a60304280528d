"""Matrices on their way to their owners, or from them, in messages of one size.

Each rank has a lane: what it owns, one matrix after the other. A message is a cut through all lanes at once, as wide as
any other and wherever it falls, so that nothing is padding but the ends of the shorter lanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from muloco_runner.distributed.message_sizes import OWNER_MESSAGE_VALUES

_ALIGNMENT = 8
"""Messages begin at whole vectors of 16 bytes, in half precision too."""


@dataclass(frozen=True)
class Part:
    """What one message has of a matrix."""

    in_lane: slice
    """Of the owner's lane in that message."""
    in_matrix: slice
    """Of the matrix, flat."""


class Lanes:
    """Of matrices of the given numbers of values, in the order in which they follow one another."""

    def __init__(self, sizes: Sequence[int], owners: Sequence[int], num_ranks: int) -> None:
        self.sizes, self.owners = list(sizes), list(owners)
        self.starts: list[int] = []
        """Of each matrix in its owner's lane."""
        lengths = [0] * num_ranks
        for size, owner in zip(sizes, owners, strict=True):
            self.starts.append(lengths[owner])
            lengths[owner] += size
        num_messages = max(1, -(-num_ranks * max(lengths) // OWNER_MESSAGE_VALUES))
        self.width = -(-max(lengths) // (num_messages * _ALIGNMENT)) * _ALIGNMENT
        """Values of each lane in one message."""
        self.num_messages = -(-max(lengths) // self.width) if self.width else 0
        self.parts: list[dict[int, Part]] = [dict(self._cut(index)) for index in range(len(sizes))]
        """Of each matrix, by message."""
        self.contents: list[list[tuple[int, Part]]] = [[] for _ in range(self.num_messages)]
        """Of each message: matrices, and what it has of them."""
        for index, parts in enumerate(self.parts):
            for message, part in parts.items():
                self.contents[message].append((index, part))

    @property
    def length(self) -> int:
        """Of a lane in all messages, its padding included."""
        return self.num_messages * self.width

    def in_lane(self, index: int) -> slice:
        """The place of a matrix in its owner's whole lane."""
        return slice(self.starts[index], self.starts[index] + self.sizes[index])

    def _cut(self, index: int) -> Iterator[tuple[int, Part]]:
        place = self.in_lane(index)
        start = place.start
        while start < place.stop:
            message, offset = divmod(start, self.width)
            stop = min(place.stop, start + self.width - offset)
            in_matrix = slice(start - place.start, stop - place.start)
            yield message, Part(slice(offset, offset + stop - start), in_matrix)
            start = stop
