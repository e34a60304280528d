"""The square blocks of a matrix, within each of which top-k chooses (arXiv 2508.15706: 64 x 64); of a vector runs.

Blocks begin at the upper left; those at the right and at the lower edge may be smaller. They are taken by kind: whole
ones, those at the right edge, at the lower edge, the one in the corner; of a kind row by row.
Legend: R rows, C columns, N blocks of a kind, S values of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class BlockKind:
    """Blocks of one height and width, and where they lie."""

    rows: slice
    columns: slice
    height: int
    width: int

    @property
    def size(self) -> int:
        """S."""
        return self.height * self.width

    @property
    def number(self) -> int:
        """N."""
        return len(range(self.rows.start, self.rows.stop, self.height)) * self._across

    @property
    def _across(self) -> int:
        return len(range(self.columns.start, self.columns.stop, self.width))

    def of(self, matrix_RC: Tensor) -> Tensor:
        """Return the blocks of a matrix, a copy (N, S)."""
        part = matrix_RC[self.rows, self.columns].reshape(-1, self.height, self._across, self.width)
        return part.transpose(1, 2).reshape(self.number, self.size)

    def put(self, blocks_NS: Tensor, matrix_RC: Tensor) -> None:
        """Write blocks to where they belong."""
        there = matrix_RC[self.rows, self.columns].view(-1, self.height, self._across, self.width)
        there.transpose(1, 2).copy_(blocks_NS.view(-1, self._across, self.height, self.width))


@dataclass(frozen=True)
class Chunks:
    """How many values a whole block has, a square, and how many of them are sent; of a smaller one as large a share."""

    size: int
    sent: int

    def kinds(self, rows: int, columns: int) -> Iterator[BlockKind]:
        """Yield the kinds of blocks of a matrix of this shape; a single row is a vector."""
        height = 1 if rows == 1 else math.isqrt(self.size)
        for of_rows, own_height in _parts(rows, height):
            for of_columns, own_width in _parts(columns, self.size // height):
                yield BlockKind(of_rows, of_columns, own_height, own_width)

    def sent_of(self, kind: BlockKind) -> int:
        """Return how many values of such a block are sent: at least one."""
        return min(kind.size, max(1, round(self.sent * kind.size / self.size)))

    def count(self, rows: int, columns: int) -> int:
        """Return how many of all values are sent."""
        return sum(kind.number * self.sent_of(kind) for kind in self.kinds(rows, columns))


def _parts(length: int, side: int) -> Iterator[tuple[slice, int]]:
    """The part of whole sides, and what is left, with the height or width of its blocks."""
    whole = length // side * side
    if whole:
        yield slice(0, whole), side
    if whole < length:
        yield slice(whole, length), length - whole
