"""Buffers for some matrices of one shape on a GPU, and the launches of their kernels.

Every tensor is row-major in its matrix's own orientation: a tall matrix X of shape (N, M) uses A = X^T X and
p X + X S instead of transposes. Rows are padded to 16 bytes, as tensor descriptors want them.

Axes: B matrices at once, R rows, C columns, M the smaller of the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from muloco_runner.muon_rule.polynomial import Polynomial
from muloco_runner.optimizers.arena import Arena
from muloco_runner.optimizers.orthogonalize.gram_form import Addend, GramForm
from muloco_runner.optimizers.orthogonalize.triton import elementwise, products, tiles, waves
from muloco_runner.optimizers.orthogonalize.triton.device_tables import Addresses
from muloco_runner.optimizers.orthogonalize.triton.hyper import HyperParameters

GRAM_ASPECT = 1.5
"""Longer over shorter side from which a polynomial's steps run in stretches."""
STRETCHES = {torch.float16: (3, 2), torch.bfloat16: (2, 2), torch.float32: (1, 1)}
"""In float16, two then three would cost the same and err twice as much: the last steps tell most. bfloat16
bears no stretch of three on rank-deficient input."""
SMALLEST_HALF_SIDE = 32
"""A matrix with a shorter side is orthogonalised in float32: its products fill no tile of half precision."""
MOST_STRIPS = 256
STRIP_BLOCK = 2048
GROUP = 8

TRITON_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def aligned_columns(columns: int) -> int:
    """Return the elements of a row in memory, for 16 bytes in any dtype; triton 3.5 asks for 16 elements."""
    return -(-columns // 16) * 16


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which gets bfloat16 products wrong."""
    return bool(triton.knobs.runtime.interpret)


def storage_dtype(rows: int, columns: int, half: torch.dtype) -> torch.dtype:
    """Return the dtype of matrices (rows, columns) between products."""
    return torch.float32 if min(rows, columns) < SMALLEST_HALF_SIDE else half


def _buffer_sizes(batch: int, rows: int, columns: int) -> list[int]:
    """Return the elements of each buffer of a workspace: X twice, and four squares."""
    side = min(rows, columns)
    return [batch * rows * aligned_columns(columns)] * 2 + [batch * side * aligned_columns(side)] * 4


def workspace_bytes(batch: int, rows: int, columns: int, half: torch.dtype) -> int:
    """Return the bytes of a workspace for `batch` matrices (rows, columns)."""
    return sum(_buffer_sizes(batch, rows, columns)) * storage_dtype(rows, columns, half).itemsize


def _describe(tensor: Tensor, rows: int, columns: int) -> Any:
    """A descriptor of tiles (rows, columns) of a batch of matrices."""
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [1, rows, columns])


def _can_be_described(tensor: Tensor) -> bool:
    """Whether it begins and every row begins where a descriptor wants them."""
    columns = tensor.shape[-1]
    return tensor.is_contiguous() and tensor.data_ptr() % 16 == 0 and columns == aligned_columns(columns)


@dataclass
class Source:
    """What is orthogonalised: gradients, and the momentum they go into, if any."""

    gradients: Addresses
    dtype: torch.dtype
    momentum_BRC: Tensor | None = None
    hyper: HyperParameters | None = None
    nesterov: bool = False


class Workspace(GramForm):
    """Buffers for at most `batch` matrices of shape (rows, columns), and the kernels on them."""

    def __init__(
        self,
        batch: int,
        rows: int,
        columns: int,
        dtype: torch.dtype,
        device: torch.device,
        arena: Arena | None = None,
    ) -> None:
        self.rows, self.columns, self.side = rows, columns, min(rows, columns)
        self.tall = rows > columns
        self.dtype = storage_dtype(rows, columns, dtype)
        self.batch = batch
        self.upcast = is_interpreted() and self.dtype == torch.bfloat16
        # Each begins at a multiple of 16 bytes, as rows are.
        sizes = _buffer_sizes(batch, rows, columns)
        self.memory = (arena or Arena()).allocate(workspace_bytes(batch, rows, columns, dtype), device)
        parts = self.memory.view(self.dtype).split(sizes)
        self.x, self.next_x = (part.view(batch, rows, -1)[..., :columns] for part in parts[:2])
        self.gram_MM, self.r_MM, self.s_MM, self.next_MM = (
            part.view(batch, self.side, -1)[..., : self.side] for part in parts[2:]
        )
        self.strips = min(MOST_STRIPS, 1 << max(0, math.ceil(math.log2(rows * columns / STRIP_BLOCK))))
        self.squares = torch.empty(batch, self.strips, dtype=torch.float64, device=device)
        self.stretches = STRETCHES[self.dtype] if max(rows, columns) >= GRAM_ASPECT * self.side else (1, 1)
        self._descriptors: dict[tuple[int, int, int], Any] = {}

    # The prologue

    def normalise(self, source: Source, polynomial: Polynomial) -> None:
        """Momentum from the gradients, and X from the momentum, divided by its norm as the polynomial says."""
        numel = self.rows * self.columns
        block = min(STRIP_BLOCK, triton.next_power_of_2(numel))
        strip = -(-numel // (self.strips * block)) * block
        shared = {
            "gradients": source.gradients.values, "momentum": source.momentum_BRC, "squares": self.squares,
            "hyper": source.hyper.values if source.hyper else None, "numel": numel, "strip": strip,
            "GRADIENT": TRITON_TYPES[source.dtype], "NESTEROV": source.nesterov,
            "ALIGNED": source.gradients.aligned, "BLOCK": block,
        }  # fmt: skip
        grid = (self.strips, self.batch)
        elementwise.accumulate_momentum[grid](**shared)
        elementwise.normalise[grid](
            out=self.x, columns=self.columns, row_stride=self.x.stride(1), matrix_stride=self.x.stride(0),
            margin=polynomial.norm_margin, epsilon=polynomial.epsilon, norm_floor=polynomial.norm_floor,
            DTYPE=TRITON_TYPES[self.dtype], STRIPS=self.strips, **shared,
        )  # fmt: skip

    # The products

    def _fresh_gram(self) -> None:
        self._launch_symmetric("left" if self.tall else "right", self.gram_MM, self.x, self.x, 1.0)

    def _symmetric(self, out_MM: Tensor, left_MM: Tensor, right_MM: Tensor, factor: float, *addends: Addend) -> None:
        self._launch_symmetric("neither", out_MM, left_MM, right_MM, factor, *addends)

    def _launch_symmetric(
        self, transposed: str, out: Tensor, left: Tensor, right: Tensor, factor: float, *addends: Addend
    ) -> None:
        inner = left.shape[-2] if transposed == "left" else left.shape[-1]
        tile = waves.symmetric_tile(self.side, self.batch, inner, self.dtype)
        m, n, k = tile.block_m, tile.block_n, tile.block_k
        (first, first_weight), (second, second_weight) = (*addends, (None, 0.0), (None, 0.0))[:2]
        products.symmetric_product[tiles.tiles_of_triangle(self.side, tile), self.batch](
            self._described(left, k, m) if transposed == "left" else self._described(left, m, k),
            self._described(right, n, k) if transposed == "right" else self._described(right, k, n),
            self._described(out, m, n), self._described(out, n, m),
            None if first is None else self._described(first, m, n),
            None if second is None else self._described(second, m, n),
            factor, first_weight, second_weight, inner,
            LEFT_TRANSPOSED=transposed == "left", RIGHT_TRANSPOSED=transposed == "right",
            DTYPE=TRITON_TYPES[self.dtype], UPCAST=self.upcast, **tile.constants(), **tile.options(),
        )  # fmt: skip

    def _advance(self, p: float) -> None:
        tile = self._tile_of_product()
        self._multiply(tile, self._described(self.next_x, tile.block_m, tile.block_n), p)
        self.x, self.next_x = self.next_x, self.x

    def _tile_of_product(self) -> tiles.Tile:
        return waves.product_tile(self.rows, self.columns, self.batch, self.dtype)

    def _multiply(self, tile: tiles.Tile, described_out: Any, p: float) -> None:
        products.product[tiles.tiles_of_product(self.rows, self.columns, tile), self.batch](
            *self._operands(tile), described_out, p, self.rows, self.columns, self.side,
            DTYPE=TRITON_TYPES[self.dtype], UPCAST=self.upcast, GROUP=GROUP, **tile.constants(), **tile.options(),
        )  # fmt: skip

    def _operands(self, tile: tiles.Tile) -> tuple[Any, Any, Any]:
        """S and X, or X and S where X is tall; and X as an addend."""
        m, n, k = tile.block_m, tile.block_n, tile.block_k
        left, right = (self.x, self.s_MM) if self.tall else (self.s_MM, self.x)
        return self._described(left, m, k), self._described(right, k, n), self._described(self.x, m, n)

    def _described(self, tensor: Tensor, rows: int, columns: int) -> Any:
        """A descriptor of one of the workspace's own buffers, made once."""
        key = (tensor.data_ptr(), rows, columns)
        if key not in self._descriptors:
            self._descriptors[key] = _describe(tensor, rows, columns)
        return self._descriptors[key]

    # The last product

    def finish_to(self, out_BRC: Tensor, p: float) -> None:
        """out = p X + S X, in any dtype: the product's own result where a descriptor can name `out`, else a copy."""
        if out_BRC.dtype == self.dtype and _can_be_described(out_BRC):
            tile = self._tile_of_product()
            self._multiply(tile, _describe(out_BRC, tile.block_m, tile.block_n), p)
        else:
            self._advance(p)
            out_BRC.copy_(self.x[: self.batch])

    def finish_into(
        self,
        parameters: Addresses,
        dtype: torch.dtype,
        source: Source,
        p: float,
        scale: float,
        cautious: bool = False,
    ) -> None:
        """Weights of `dtype` <- decayed weights - lr scale (p X + S X), where there was a gradient; `cautious` is of
        the decay, as in `update_rule.decay_`."""
        assert source.hyper is not None
        tile = waves.product_tile(self.rows, self.columns, self.batch, self.dtype, tiles.INTO_PARAMETERS)
        products.product_into_parameters[tiles.tiles_of_product(self.rows, self.columns, tile), self.batch](
            *self._operands(tile), parameters.values, source.gradients.values, source.hyper.values, p, scale,
            self.rows, self.columns, self.side,
            PARAMETER=TRITON_TYPES[dtype], ALIGNED=parameters.aligned, UPCAST=self.upcast, CAUTIOUS=cautious,
            GROUP=GROUP, **tile.constants(), **tile.options(),
        )  # fmt: skip
