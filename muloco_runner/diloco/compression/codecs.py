"""How the values of one tensor are written: exactly, or each as one of 2^bits levels; all of them, or the largest.

A codec turns a matrix into byte strings of known lengths and back; rows may have levels of their own. Legend: R rows
(1 where a tensor shares one set of levels), C columns, L levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from muloco_runner.config import CompressionConfig, QuantisationConfig, TopKConfig
from muloco_runner.diloco.compression.bits import pack, packed_bytes, unpack
from muloco_runner.diloco.compression.chunks import Chunks

_BLOCK_VALUES = {"cpu": 1 << 16, "cuda": 1 << 22}
"""What stays in a CPU's cache and leaves float32 sums exact enough; what keeps a GPU busy, and is small where sums are
made there, which takes some 40 bytes a value."""
_RUN_VALUES = 1024
"""Most values that one sum on a GPU takes: they are added one after the other."""


class Codec(ABC):
    """Writes a matrix of values as byte strings of the lengths that `part_bytes` promises, and reads them back.

    `class Mine(Codec, scheme=7)`: the number by which payloads name it, its own for all time.
    """

    scheme: ClassVar[int]
    bits: Any
    """Bits of a code; one of `allowed_bits`."""
    by_row: Any
    """Whether each row is written as it would be alone."""
    allowed_bits: ClassVar[tuple[int, ...]] = (2, 4, 8)

    def __init_subclass__(cls, *, scheme: int, **others: Any) -> None:
        super().__init_subclass__(**others)
        if scheme in _BY_SCHEME:
            raise TypeError(f"{cls.__name__}: scheme {scheme} is {_BY_SCHEME[scheme].__name__}'s, take a free number")
        cls.scheme = scheme
        _BY_SCHEME[scheme] = cls

    @staticmethod
    def of(scheme: int, bits: int, by_row: int) -> Codec:
        """The codec that a payload names. Numbers that name none raise `ValueError`."""
        cls = _BY_SCHEME.get(scheme)
        if cls is None or bits not in cls.allowed_bits or by_row not in (0, 1):
            raise ValueError(f"no codec has scheme {scheme}, {bits} bits, rows apart {by_row}")
        return cls.read(bits, bool(by_row))

    @classmethod
    def read(cls, bits: int, by_row: bool) -> Codec:
        """The codec of these numbers."""
        return cls(bits, by_row)  # type: ignore[call-arg]

    @abstractmethod
    def part_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]: ...
    @abstractmethod
    def encode(self, values_RC: Tensor) -> list[Tensor]: ...
    @abstractmethod
    def decode(self, parts: Sequence[Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor: ...


_BY_SCHEME: dict[int, type[Codec]] = {}


@dataclass(frozen=True)
class Exact(Codec, scheme=0):
    """The bytes of the values."""

    bits = 0
    by_row = True  # rows are independent of each other
    allowed_bits = (0,)

    @classmethod
    def read(cls, bits: int, by_row: bool) -> Exact:
        return cls()

    def part_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        return (rows * columns * dtype.itemsize,)

    def encode(self, values_RC: Tensor) -> list[Tensor]:
        return [as_bytes(values_RC)]

    def decode(self, parts: Sequence[Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return parts[0].view(dtype).view(rows, columns)


@dataclass(frozen=True)
class Statistical(Codec, scheme=1):
    """2^bits bins over six standard deviations around the mean; each is read back as the mean of what fell into it."""

    bits: int
    by_row: bool = False

    def part_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        """The levels in float32, then the codes."""
        sets = rows if self.by_row else 1
        return sets * 2**self.bits * 4, packed_bytes(rows * columns, self.bits)

    def encode(self, values_RC: Tensor) -> list[Tensor]:
        values_RC = _share_levels(values_RC, self.by_row)
        levels = 2**self.bits
        if values_RC.numel() == 0:
            return [as_bytes(values_RC.new_zeros(len(values_RC), levels)), _no_bytes(values_RC)]
        rows, columns = values_RC.shape
        mean_R1, unit_R1 = values_RC.mean(dim=1, keepdim=True), _unit(values_RC)
        squares_R1 = torch.zeros(rows, 1, dtype=torch.float64, device=values_RC.device)
        for block in _blocks(values_RC):
            own = block[0]
            distances = (values_RC[block] - mean_R1[own]).div_(unit_R1[own])
            squares_R1[own] += distances.square_().sum(dim=1, keepdim=True)
        spread_R1 = ((squares_R1 / columns).sqrt() * unit_R1).to(torch.float32)
        width_R1 = torch.where(spread_R1 > 0, spread_R1 * (6 / levels), 1.0)
        codes_RC = torch.empty(rows, columns, dtype=torch.uint8, device=values_RC.device)
        sums_RL = torch.zeros(rows, levels, dtype=torch.float64, device=values_RC.device)
        counts_RL = torch.zeros_like(sums_RL)
        for block in _blocks(values_RC):
            own = block[0]
            numbers = (values_RC[block] - mean_R1[own]).div_(width_R1[own]).add_(levels // 2)
            codes_RC[block] = _to_codes(numbers, levels)
            sums, counts = _bin_sums(values_RC[block], codes_RC[block], levels)
            sums_RL[own] += sums
            counts_RL[own] += counts
        levels_RL = (sums_RL / counts_RL.clamp_min(1)).to(torch.float32)
        return [as_bytes(levels_RL), pack(codes_RC.flatten(), self.bits)]

    def decode(self, parts: Sequence[Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        levels, packed = parts
        codes = unpack(packed, self.bits, rows * columns).to(torch.int32)
        if self.by_row:
            first = torch.arange(rows, dtype=torch.int32, device=codes.device) * 2**self.bits
            codes = (codes.view(rows, columns) + first[:, None]).flatten()
        return torch.index_select(levels.view(torch.float32), 0, codes).view(rows, columns).to(dtype)


@dataclass(frozen=True)
class Linear(Codec, scheme=2):
    """2^bits levels, evenly spaced from the smallest value to the largest."""

    bits: int
    by_row: bool = False

    def part_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        """The lowest level and the step in float32, then the codes."""
        return (rows if self.by_row else 1) * 8, packed_bytes(rows * columns, self.bits)

    def encode(self, values_RC: Tensor) -> list[Tensor]:
        values_RC = _share_levels(values_RC, self.by_row)
        levels = 2**self.bits
        if values_RC.numel() == 0:
            return [as_bytes(values_RC.new_zeros(len(values_RC), 2)), _no_bytes(values_RC)]
        # Each for itself: `aminmax` along a dimension is twenty times slower on a CPU.
        low_R1, high_R1 = values_RC.amin(dim=1, keepdim=True), values_RC.amax(dim=1, keepdim=True)
        step_R1 = (high_R1 - low_R1) / (levels - 1)
        divisor_R1 = torch.where(step_R1 > 0, step_R1, 1.0)
        codes_RC = torch.empty(values_RC.shape, dtype=torch.uint8, device=values_RC.device)
        for block in _blocks(values_RC):
            numbers = (values_RC[block] - low_R1[block[0]]).div_(divisor_R1[block[0]]).round_()
            codes_RC[block] = _to_codes(numbers, levels)
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
    values: Codec = Exact()
    chunk: int | None = None
    """Values of a block among which the largest are chosen; None for all of a tensor's."""

    @property
    def chunks(self) -> Chunks | None:
        return None if self.chunk is None else Chunks(self.chunk, round(self.fraction * self.chunk))

    def count(self, size: int) -> int:
        """How many of `size` values are sent: at least one."""
        return min(size, max(1, round(self.fraction * size)))

    def choose(self, values: Tensor) -> Tensor:
        """Their indices in `values` (n,), ascending, int32. Among equals the first ones are taken."""
        count = self.count(values.numel())
        wide = torch.promote_types(values.dtype, torch.float32)
        magnitudes = values.abs().to(wide).nan_to_num_(nan=float("inf"), posinf=float("inf"))
        smallest = _kth_largest(magnitudes, count)
        chosen = (magnitudes >= smallest).nonzero().flatten()
        surplus = chosen.numel() - count
        if surplus:
            equal = (magnitudes[chosen] == smallest).nonzero().flatten()
            kept = torch.ones_like(chosen, dtype=torch.bool)
            kept[equal[-surplus:]] = False
            chosen = chosen[kept]
        return chosen.to(torch.int32)

    @staticmethod
    def choose_in_rows(values_NS: Tensor, count: int) -> Tensor:
        """As `choose`, `count` in each row by itself: shape (N, count), int64."""
        wide = torch.promote_types(values_NS.dtype, torch.float32)
        found = [values_NS.new_empty(0, count, dtype=torch.int64)]
        for some in values_NS.split(max(1, _BLOCK_VALUES[values_NS.device.type] // values_NS.shape[1])):
            magnitudes = some.abs().to(wide).nan_to_num_(nan=float("inf"), posinf=float("inf"))
            smallest = _kth_largest(magnitudes, count)[:, None]
            larger, equal = magnitudes > smallest, magnitudes == smallest
            missing = count - larger.sum(dim=1, keepdim=True)
            kept = larger | (equal & (equal.cumsum(dim=1) <= missing))
            found.append(kept.nonzero()[:, 1].view(-1, count))
        return torch.cat(found)


AnyCodec = Codec | TopK


def exact(config: CompressionConfig) -> Codec:
    """The codec of `config`, and so are the others below."""
    return Exact()


def quantiser(config: QuantisationConfig) -> Codec:
    return _QUANTISERS[config.name](config.bits, config.granularity == "row")


def top_k(config: TopKConfig) -> TopK:
    values = Exact() if config.bits is None else _QUANTISERS[config.values](config.bits)
    return TopK(config.fraction, values, config.chunk)


_QUANTISERS = {"statistical": Statistical, "linear": Linear}


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor (n,), uint8; the tensor itself where it is contiguous."""
    flat = tensor.contiguous().flatten()
    return _no_bytes(tensor) if flat.numel() == 0 else flat.view(torch.uint8)


def _no_bytes(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=like.device)


def _share_levels(values_RC: Tensor, by_row: bool) -> Tensor:
    values_RC = values_RC.to(torch.float32)
    return values_RC if by_row else values_RC.reshape(1, -1)


def _unit(values_RC: Tensor) -> Tensor:
    """The power of two at or below the largest magnitude of each row, (R, 1): over it, squares neither overflow nor
    vanish, and nothing is rounded. 1 where all values are zero or one is no number."""
    largest_R1 = torch.maximum(values_RC.amax(dim=1, keepdim=True), -values_RC.amin(dim=1, keepdim=True))
    largest_R1 = torch.where((largest_R1 > 0) & largest_R1.isfinite(), largest_R1, 1.0)
    return torch.ldexp(torch.ones_like(largest_R1), torch.frexp(largest_R1).exponent - 1)


def _to_codes(numbers_RC: Tensor, levels: int) -> Tensor:
    """Real numbers of levels to integers within range; NaN becomes 0 (its level is NaN too)."""
    return numbers_RC.nan_to_num_(nan=0.0).clamp_(0, levels - 1).to(torch.uint8)


def _blocks(values_RC: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of parts of about `_BLOCK_VALUES`."""
    rows, columns = values_RC.shape
    at_once = _BLOCK_VALUES[values_RC.device.type]
    height, width = max(1, at_once // columns), min(columns, at_once)
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            yield slice(row, row + height), slice(column, column + width)


def _bin_sums(values_RC: Tensor, codes_RC: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Sum and number of the values of each code, by row, shapes (R, L).

    On a GPU in an order that is always the same, so that a worker's replicas write the same payload.
    """
    rows, size = len(values_RC), len(values_RC) * levels
    bins = codes_RC.flatten()
    if rows > 1:
        first_R1 = torch.arange(rows, dtype=torch.int32, device=bins.device)[:, None] * levels
        bins = (codes_RC + first_R1).flatten()
    counts_RL = torch.bincount(bins, minlength=size).view(rows, levels)
    if values_RC.is_cuda:
        return _sums_in_order(values_RC, codes_RC, levels), counts_RL
    return torch.bincount(bins, weights=values_RC.flatten(), minlength=size).view(rows, levels), counts_RL


def _sums_in_order(values_RC: Tensor, codes_RC: Tensor, levels: int) -> Tensor:
    """Shape (R, L). `index_put_` sorts by bin and lets one thread walk along all values of a bin, so that a few bins of
    millions would take seconds: each run of a row's values has bins of its own, and the runs' sums are added up."""
    bins_RC, runs = _bins_of_runs(codes_RC, levels)
    rows = len(values_RC)
    sums = torch.zeros(rows * runs * levels, dtype=torch.float64, device=values_RC.device)
    sums.index_put_((bins_RC.flatten(),), values_RC.flatten().double(), accumulate=True)
    return sums.view(rows, runs, levels).sum(dim=1)


def _bins_of_runs(codes_RC: Tensor, levels: int) -> tuple[Tensor, int]:
    """Bins of which none gets more than `_RUN_VALUES` values, int64, and the number of runs of a row."""
    rows, columns = codes_RC.shape
    runs = -(-columns // _RUN_VALUES)
    row_R1 = torch.arange(rows, device=codes_RC.device)[:, None]
    run_C = torch.arange(columns, device=codes_RC.device) // _RUN_VALUES
    return (row_R1 * runs + run_C) * levels + codes_RC, runs


def _kth_largest(magnitudes: Tensor, count: int) -> Tensor:
    """Along the last dimension."""
    if magnitudes.is_cuda:
        return torch.topk(magnitudes, count, sorted=False).values.amin(dim=-1)
    # Ten times as fast as torch.topk on a CPU.
    index = magnitudes.shape[-1] - count
    return torch.as_tensor(np.partition(magnitudes.numpy(), index)[..., index], dtype=magnitudes.dtype)
