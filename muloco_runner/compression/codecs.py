"""How the values of one tensor are written: exactly, or each as one of 2^bits levels; all of them, or the largest.

A codec turns a matrix into byte strings of known lengths and back; rows may have levels of their own. Legend: R rows
(1 where a tensor shares one set of levels), C columns, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from muloco_runner.compression.bits import pack, packed_bytes, unpack

_SUMMED_AT_ONCE = 1 << 16
"""Values that a float32 sum may run over before its rounding shows."""


class Scheme(IntEnum):
    """As written in a payload."""

    EXACT = 0
    STATISTICAL = 1
    LINEAR = 2


class Codec(Protocol):
    """Of values, R x C. `encode` gives byte strings of the lengths that `part_bytes` promises."""

    @property
    def scheme(self) -> Scheme: ...
    @property
    def bits(self) -> int: ...
    @property
    def by_row(self) -> bool: ...
    def part_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]: ...
    def encode(self, values_RC: Tensor) -> list[Tensor]: ...
    def decode(self, parts: Sequence[Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor: ...


@dataclass(frozen=True)
class Exact:
    """The bytes of the values."""

    scheme = Scheme.EXACT
    bits = 0
    by_row = True  # rows are independent of each other

    def part_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        return (rows * columns * dtype.itemsize,)

    def encode(self, values_RC: Tensor) -> list[Tensor]:
        return [as_bytes(values_RC)]

    def decode(self, parts: Sequence[Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return parts[0].view(dtype).view(rows, columns)


@dataclass(frozen=True)
class Statistical:
    """2^bits bins over six standard deviations around the mean; each is read back as the mean of what fell into it."""

    bits: int
    by_row: bool = False
    scheme = Scheme.STATISTICAL

    def part_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        """The levels in float32, then the codes."""
        sets = rows if self.by_row else 1
        return sets * 2**self.bits * 4, packed_bytes(rows * columns, self.bits)

    def encode(self, values_RC: Tensor) -> list[Tensor]:
        values_RC = _share_levels(values_RC, self.by_row)
        levels = 2**self.bits
        if values_RC.numel() == 0:
            return [as_bytes(values_RC.new_zeros(len(values_RC), levels)), _no_bytes(values_RC)]
        mean_R1 = values_RC.mean(dim=1, keepdim=True)
        centred_RC = values_RC - mean_R1
        spread_R1 = torch.linalg.vector_norm(centred_RC, dim=1, keepdim=True) / values_RC.shape[1] ** 0.5
        width_R1 = torch.where(spread_R1 > 0, spread_R1 * (6 / levels), 1.0)
        codes_RC = _to_codes(centred_RC.div_(width_R1).add_(levels // 2), levels)
        levels_RL = _bin_means(values_RC, codes_RC, levels)
        return [as_bytes(levels_RL), pack(codes_RC.flatten(), self.bits)]

    def decode(self, parts: Sequence[Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        levels, packed = parts
        codes = unpack(packed, self.bits, rows * columns).to(torch.int32)
        if self.by_row:
            first = torch.arange(rows, dtype=torch.int32, device=codes.device) * 2**self.bits
            codes = (codes.view(rows, columns) + first[:, None]).flatten()
        return torch.index_select(levels.view(torch.float32), 0, codes).view(rows, columns).to(dtype)


@dataclass(frozen=True)
class Linear:
    """2^bits levels, evenly spaced from the smallest value to the largest."""

    bits: int
    by_row: bool = False
    scheme = Scheme.LINEAR

    def part_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        """The lowest level and the step in float32, then the codes."""
        return (rows if self.by_row else 1) * 8, packed_bytes(rows * columns, self.bits)

    def encode(self, values_RC: Tensor) -> list[Tensor]:
        values_RC = _share_levels(values_RC, self.by_row)
        levels = 2**self.bits
        if values_RC.numel() == 0:
            return [as_bytes(values_RC.new_zeros(len(values_RC), 2)), _no_bytes(values_RC)]
        low_R1, high_R1 = torch.aminmax(values_RC, dim=1, keepdim=True)
        step_R1 = (high_R1 - low_R1) / (levels - 1)
        codes_RC = _to_codes(((values_RC - low_R1).div_(torch.where(step_R1 > 0, step_R1, 1.0))).round_(), levels)
        return [as_bytes(torch.cat([low_R1, step_R1], dim=1)), pack(codes_RC.flatten(), self.bits)]

    def decode(self, parts: Sequence[Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        levels_R2 = parts[0].view(torch.float32).view(-1, 2)
        codes = unpack(parts[1], self.bits, rows * columns).to(torch.float32)
        codes_RC = codes.view(rows, columns) if self.by_row else codes[None]
        return codes_RC.mul_(levels_R2[:, 1:]).add_(levels_R2[:, :1]).view(rows, columns).to(dtype)


@dataclass(frozen=True)
class TopK:
    """The share `fraction` of a tensor's values that are largest by magnitude; the others are read back as zero."""

    fraction: float
    values: Exact | Statistical | Linear = Exact()

    def count(self, size: int) -> int:
        """How many of `size` values are sent: at least one."""
        return min(size, max(1, round(self.fraction * size)))

    def choose(self, values: Tensor) -> Tensor:
        """Their places in `values` (n,), ascending, int32. Among equals the first ones are taken."""
        count = self.count(values.numel())
        wide = torch.promote_types(values.dtype, torch.float32)
        magnitudes = values.abs().to(wide).nan_to_num_(nan=float("inf"), posinf=float("inf"))
        smallest = _kth_largest(magnitudes, count)
        above = (magnitudes > smallest).nonzero().flatten()
        equal = (magnitudes == smallest).nonzero().flatten()[: count - above.numel()]
        return torch.cat([above, equal]).sort().values.to(torch.int32)


AnyCodec = Exact | Statistical | Linear | TopK


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor (n,), uint8; the tensor itself where it lies in one piece."""
    flat = tensor.contiguous().flatten()
    return _no_bytes(tensor) if flat.numel() == 0 else flat.view(torch.uint8)


def _no_bytes(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=like.device)


def _share_levels(values_RC: Tensor, by_row: bool) -> Tensor:
    values_RC = values_RC.to(torch.float32)
    return values_RC if by_row else values_RC.reshape(1, -1)


def _to_codes(places_RC: Tensor, levels: int) -> Tensor:
    """Real places to whole ones within range; a place that is no number becomes 0 (its level is none either)."""
    return places_RC.nan_to_num_(nan=0.0).clamp_(0, levels - 1).to(torch.uint8)


def _bin_means(values_RC: Tensor, codes_RC: Tensor, levels: int) -> Tensor:
    """Mean of the values of each code, by row; zero where there are none. Shape (R, L)."""
    rows, columns = values_RC.shape
    sums_RL = torch.empty((rows, levels), dtype=torch.float64, device=values_RC.device)
    counts_RL = torch.empty_like(sums_RL)
    # A GPU takes all at once; a CPU few enough rows to stay in its cache.
    height = rows if values_RC.is_cuda else max(1, _SUMMED_AT_ONCE // columns)
    for first in range(0, rows, height):
        part = slice(first, first + height)
        sums_RL[part], counts_RL[part] = _bin_sums(values_RC[part], codes_RC[part], levels)
    return (sums_RL / counts_RL.clamp_min(1)).to(torch.float32)


def _bin_sums(values_RC: Tensor, codes_RC: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Sum and number of the values of each code, by row.

    On a GPU in an order that is always the same, so that a worker's replicas write the same payload; on a CPU in
    float64 over stretches short enough for float32.
    """
    rows, size = len(values_RC), len(values_RC) * levels
    bins = codes_RC.to(torch.int32)
    if rows > 1:
        bins += torch.arange(rows, dtype=torch.int32, device=bins.device)[:, None] * levels
    bins, values = bins.flatten(), values_RC.flatten()
    sums = torch.zeros(size, dtype=torch.float64, device=values.device)
    if values.is_cuda:
        sums.index_put_((bins.long(),), values.double(), accumulate=True)
    else:
        for part_bins, part in zip(bins.split(_SUMMED_AT_ONCE), values.split(_SUMMED_AT_ONCE), strict=True):
            sums += torch.bincount(part_bins, weights=part, minlength=size)
    return sums.view(rows, levels), torch.bincount(bins, minlength=size).view(rows, levels)


def _kth_largest(magnitudes: Tensor, count: int) -> Tensor:
    if magnitudes.is_cuda:
        return torch.topk(magnitudes, count, sorted=False).values.amin()
    # Ten times as fast as torch.topk on a CPU.
    place = magnitudes.numel() - count
    return torch.as_tensor(np.partition(magnitudes.numpy(), place)[place], dtype=magnitudes.dtype)
