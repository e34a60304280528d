"""The layout of matrices in messages to their owners, or from them; all messages have one size.

Each rank has an owner buffer: the matrices it owns, flat, one after the other. A message is a cut through the buffers
of all ranks at the same offset and of the same width, wherever that falls in a matrix, so that nothing is padding but
the ends of the shorter buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from muloco_runner.distributed import message_sizes

_ALIGNMENT = 8
"""Values: messages begin at whole vectors of 16 bytes, in half precision too."""


@dataclass(frozen=True)
class Part:
    """The values of one matrix in one message."""

    in_buffer: slice
    """Where they stand in the owner's buffer, counted from the start of that message."""
    in_matrix: slice
    """Where they stand in the flat matrix."""


class OwnerBuffers:
    """The layout of matrices with the given numbers of values and owners, in this order."""

    def __init__(self, sizes: Sequence[int], owners: Sequence[int], num_ranks: int) -> None:
        self.sizes, self.owners = list(sizes), list(owners)
        self.starts: list[int] = []
        """Offset of each matrix in its owner's buffer."""
        lengths = [0] * num_ranks
        for size, owner in zip(sizes, owners, strict=True):
            self.starts.append(lengths[owner])
            lengths[owner] += size
        num_messages = max(1, -(-num_ranks * max(lengths) // message_sizes.OWNER_MESSAGE_VALUES))
        self.width = -(-max(lengths) // (num_messages * _ALIGNMENT)) * _ALIGNMENT
        """Values of each buffer in one message."""
        self.num_messages = -(-max(lengths) // self.width) if self.width else 0
        self.parts: list[dict[int, Part]] = [dict(self._cut(index)) for index in range(len(sizes))]
        """[matrix][message] -> the matrix's values in that message."""
        self.contents: list[list[tuple[int, Part]]] = [[] for _ in range(self.num_messages)]
        """[message] -> matrices, and their values in it."""
        for index, parts in enumerate(self.parts):
            for message, part in parts.items():
                self.contents[message].append((index, part))

    @property
    def length(self) -> int:
        """Values of one buffer, padding included."""
        return self.num_messages * self.width

    def in_buffer(self, index: int) -> slice:
        """Return where matrix `index` stands in its owner's buffer."""
        return slice(self.starts[index], self.starts[index] + self.sizes[index])

    def _cut(self, index: int) -> Iterator[tuple[int, Part]]:
        matrix = self.in_buffer(index)
        start = matrix.start
        while start < matrix.stop:
            message, offset = divmod(start, self.width)
            stop = min(matrix.stop, start + self.width - offset)
            in_matrix = slice(start - matrix.start, stop - matrix.start)
            yield message, Part(slice(offset, offset + stop - start), in_matrix)
            start = stop
