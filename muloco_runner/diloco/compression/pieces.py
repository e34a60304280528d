"""Cutting a list of tensors into messages and shares of about equal size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from muloco_runner.diloco.compression.codecs import AnyCodec, TopK


@dataclass(frozen=True)
class Piece:
    """Rows of one tensor of a list. Only a tensor whose rows are written apart from each other is ever cut."""

    tensor: int
    """Its place in the list."""
    rows: slice
    num_rows: int
    row_size: int
    """Values in a row."""
    can_be_cut: bool

    @property
    def size(self) -> int:
        return self.num_rows * self.row_size

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """A view of the rows; of the whole tensor where it is not cut."""
        tensor = tensors[self.tensor]
        return tensor if self.rows == slice(None) else tensor[self.rows]

    def cut(self, first: int, end: int) -> Piece:
        """Some of its rows."""
        if (first, end) == (0, self.num_rows):
            return self
        start = self.rows.start or 0
        return replace(self, rows=slice(start + first, start + end), num_rows=end - first)


def writes_rows_apart(codec: AnyCodec) -> bool:
    """Whether each row of a tensor is written as it would be alone."""
    return not isinstance(codec, TopK) and codec.by_row


def whole_pieces(tensors: Sequence[Tensor], codecs: Sequence[AnyCodec]) -> list[Piece]:
    """Each tensor as one piece."""
    pieces = []
    for place, (tensor, codec) in enumerate(zip(tensors, codecs, strict=True)):
        rows = tensor.shape[0] if tensor.ndim else 1
        can_be_cut = tensor.ndim > 0 and writes_rows_apart(codec)
        pieces.append(Piece(place, slice(None), rows, tensor.numel() // rows if rows else 0, can_be_cut))
    return pieces


def cut(pieces: Sequence[Piece], count: int) -> list[list[Piece]]:
    """`count` runs of pieces, in order and of about equal size; a run may be empty."""
    runs: list[list[Piece]] = [[] for _ in range(count)]
    total = max(1, sum(piece.size for piece in pieces))
    start = 0
    for piece in pieces:
        if piece.can_be_cut and piece.size:
            bounds = [round((total * number / count - start) / piece.row_size) for number in range(count + 1)]
            edges = [min(max(bound, 0), piece.num_rows) for bound in bounds]
            for run, first, end in zip(runs, edges[:-1], edges[1:], strict=True):
                if first < end:
                    run.append(piece.cut(first, end))
        else:
            middle = start + piece.size / 2
            runs[min(count - 1, int(middle * count / total))].append(piece)
        start += piece.size
    return runs
