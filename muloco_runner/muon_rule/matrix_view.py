"""A parameter as the matrices that Muon orthogonalises: one, the blocks of a fused one, or a batch.

Whatever its shape, a parameter is read row by row as (blocks * rows, columns).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MatrixView:
    """`blocks` matrices (rows, columns), one below the other."""

    blocks: int
    rows: int
    """Of each: fan-out."""
    columns: int
    """Of each: fan-in."""


def matrix_view(shape: Sequence[int], split: int, batched: bool) -> MatrixView:
    """Return a parameter's matrices.

    A parameter of more than two dimensions is one matrix, (first, all others), as of a convolution, or where `batched`
    a batch of matrices of its last two. Each matrix is cut into `split` equal blocks of rows. A shape of fewer than two
    dimensions, or rows that `split` does not divide, is a `ValueError`.
    """
    if len(shape) < 2:
        raise ValueError(f'a parameter of shape {tuple(shape)} is no matrix: give it a group with algorithm="adamw"')
    rows = shape[-2] if batched else shape[0]
    if rows % split:
        raise ValueError(f"split={split}: does not divide the {rows} rows of a parameter of shape {tuple(shape)}")
    matrices = math.prod(shape[:-2]) if batched else 1
    return MatrixView(matrices * split, rows // split, shape[-1] if batched else math.prod(shape[1:]))


def splits_of(group: dict[str, Any]) -> list[int]:
    """Return into how many blocks each parameter of a group is cut.

    `split` is that number for all, or numbers by a part of the parameters' names ("qkv" of "blocks.0.qkv.weight").
    """
    split, parameters = group["split"], group["params"]
    if not isinstance(split, dict):
        return [split] * len(parameters)
    names = group.get("param_names")
    if names is None:
        raise ValueError(
            f"split={split}: by name, but the parameters have none; give (name, parameter) pairs, as of "
            "model.named_parameters(), or one number for a group"
        )
    return [split_of(split, name) for name in names]


def split_of(split: int | Mapping[str, int], name: str) -> int:
    """Return into how many blocks the parameter of that name is cut: by the first part that is in it, else 1."""
    if not isinstance(split, Mapping):
        return split
    return next((number for part, number in split.items() if part in name.split(".")), 1)
