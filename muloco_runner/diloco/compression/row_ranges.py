"""Cutting a list of tensors into messages and shares of about equal size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from muloco_runner.diloco.compression.codecs import AnyCodec, TopK


@dataclass(frozen=True)
class RowRange:
    """Rows of one tensor of a list. Only a tensor whose rows are written apart from each other is ever cut."""

    tensor: int
    """Its index in the list."""
    rows: slice
    num_rows: int
    row_size: int
    """Values in a row."""
    can_be_cut: bool

    @property
    def size(self) -> int:
        return self.num_rows * self.row_size

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """A view of the rows; of the full tensor where it is not cut."""
        tensor = tensors[self.tensor]
        return tensor if self.rows == slice(None) else tensor[self.rows]

    def cut(self, first: int, end: int) -> RowRange:
        """Some of its rows."""
        if (first, end) == (0, self.num_rows):
            return self
        start = self.rows.start or 0
        return replace(self, rows=slice(start + first, start + end), num_rows=end - first)


def writes_rows_apart(codec: AnyCodec) -> bool:
    """Whether each row of a tensor is written as it would be alone."""
    return not isinstance(codec, TopK) and codec.by_row


def full_ranges(tensors: Sequence[Tensor], codecs: Sequence[AnyCodec]) -> list[RowRange]:
    """All rows of each tensor."""
    ranges = []
    for index, (tensor, codec) in enumerate(zip(tensors, codecs, strict=True)):
        rows = tensor.shape[0] if tensor.ndim else 1
        can_be_cut = tensor.ndim > 0 and writes_rows_apart(codec)
        ranges.append(RowRange(index, slice(None), rows, tensor.numel() // rows if rows else 0, can_be_cut))
    return ranges


def cut(ranges: Sequence[RowRange], count: int) -> list[list[RowRange]]:
    """`count` lists of ranges, in order and of about equal size; a list may be empty."""
    runs: list[list[RowRange]] = [[] for _ in range(count)]
    total = max(1, sum(part.size for part in ranges))
    start = 0
    for part in ranges:
        if part.can_be_cut and part.size:
            bounds = [round((total * number / count - start) / part.row_size) for number in range(count + 1)]
            edges = [min(max(bound, 0), part.num_rows) for bound in bounds]
            for run, first, end in zip(runs, edges[:-1], edges[1:], strict=True):
                if first < end:
                    run.append(part.cut(first, end))
        else:
            middle = start + part.size / 2
            runs[min(count - 1, int(middle * count / total))].append(part)
        start += part.size
    return runs
