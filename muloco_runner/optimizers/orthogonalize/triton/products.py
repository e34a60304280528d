"""The three matrix products of an orthogonalisation, as batched Triton kernels for half precision.

* `symmetric_product`: X X^T, b A + c A^2 and its like, on the tiles of the lower triangle; it writes both triangles.
* `product`: p X + S X, or p X + X S where X is tall.
* `product_into_parameters`: the same as the last product of a step, whose epilogue decays and updates the weights.

Operands come through tensor descriptors of shape (batch, rows, columns): on Hopper the tensor memory accelerator
copies tiles asynchronously and fills zeros beyond the edges, so any shape is exact. Sums are float32. `UPCAST`
multiplies in float32, as the interpreter needs it for bfloat16.
"""

# Arguments of a kernel are typed by Triton.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from muloco_runner.optimizers.orthogonalize.triton.elementwise import decayed, kept_and_scale, pointer_to


@triton.jit
def _triangle_tile(index, RATIO: tl.constexpr):
    """Row and column of the tile: the rows of the triangle have RATIO, 2 RATIO, 3 RATIO ... tiles."""
    block = index // RATIO
    row = ((tl.sqrt(8.0 * block + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The root is rounded.
    row = tl.where(row * (row + 1) // 2 > block, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= block, row + 1, row)
    return row, index - RATIO * (row * (row + 1) // 2)


@triton.jit
def symmetric_product(
    left, right, out, mirrored, first_addend, second_addend, factor, first_weight, second_weight, inner,
    LEFT_TRANSPOSED: tl.constexpr, RIGHT_TRANSPOSED: tl.constexpr, DTYPE: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = factor left right + the weighted addends, where that is symmetric; either side may be read transposed.

    Grid (tiles of the triangle, batch). `mirrored` is `out` with the tile's sides swapped. Addends may be None.
    """
    RATIO: tl.constexpr = BLOCK_M // BLOCK_N
    row, column = _triangle_tile(tl.program_id(0), RATIO)
    batch = tl.program_id(1)
    i, j = row * BLOCK_M, column * BLOCK_N
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, inner, BLOCK_K):
        if LEFT_TRANSPOSED:
            a = left.load([batch, k, i]).reshape(BLOCK_K, BLOCK_M).T
        else:
            a = left.load([batch, i, k]).reshape(BLOCK_M, BLOCK_K)
        # What is symmetric but for rounding is not to be transposed instead: products of such products would grow the
        # difference by a factor of ten each.
        if RIGHT_TRANSPOSED:
            b = right.load([batch, j, k]).reshape(BLOCK_N, BLOCK_K).T
        else:
            b = right.load([batch, k, j]).reshape(BLOCK_K, BLOCK_N)
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        sums = tl.dot(a, b, sums, input_precision="ieee")
    sums *= factor
    if first_addend is not None:
        sums += first_weight * first_addend.load([batch, i, j]).reshape(BLOCK_M, BLOCK_N).to(tl.float32)
    if second_addend is not None:
        sums += second_weight * second_addend.load([batch, i, j]).reshape(BLOCK_M, BLOCK_N).to(tl.float32)
    tile = sums.to(DTYPE)
    out.store([batch, i, j], tile.reshape(1, BLOCK_M, BLOCK_N))
    # Tiles on the diagonal are all there; each value is written once, so the result does not depend on their order.
    if column < RATIO * row:
        mirrored.store([batch, j, i], tile.T.reshape(1, BLOCK_N, BLOCK_M))


@triton.jit
def _tile_of_product(
    left, right, x, p, rows, columns, inner, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """p x + left right in float32 on this program's tile, and where the tile begins.

    GROUP rows of tiles are walked together, so that what they share stays in the L2 cache.
    """
    index, batch = tl.program_id(0), tl.program_id(1)
    tiles_n = tl.cdiv(columns, BLOCK_N)
    in_group = GROUP * tiles_n
    first_row = index // in_group * GROUP
    height = min(tl.cdiv(rows, BLOCK_M) - first_row, GROUP)
    i = (first_row + index % in_group % height) * BLOCK_M
    j = index % in_group // height * BLOCK_N
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, inner, BLOCK_K):
        a = left.load([batch, i, k]).reshape(BLOCK_M, BLOCK_K)
        b = right.load([batch, k, j]).reshape(BLOCK_K, BLOCK_N)
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        sums = tl.dot(a, b, sums, input_precision="ieee")
    return sums + p * x.load([batch, i, j]).reshape(BLOCK_M, BLOCK_N).to(tl.float32), i, j


@triton.jit
def product(
    left, right, x, out, p, rows, columns, inner, DTYPE: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out = p x + left right, of shape (rows, columns). Grid (tiles, batch)."""
    sums, i, j = _tile_of_product(left, right, x, p, rows, columns, inner, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K, GROUP)
    out.store([tl.program_id(1), i, j], sums.to(DTYPE).reshape(1, BLOCK_M, BLOCK_N))


@triton.jit
def product_into_parameters(
    left, right, x, parameters, gradients, hyper, p, shape_scale, rows, columns, inner,
    PARAMETER: tl.constexpr, ALIGNED: tl.constexpr, UPCAST: tl.constexpr, CAUTIOUS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """W <- (1 - lr decay) W - lr shape_scale (p x + left right). Grid (tiles, batch). CAUTIOUS: see `decayed`.

    `parameters` and `gradients` are int64 addresses, one a matrix; a parameter without a gradient (0) stays as it is.
    """
    batch = tl.program_id(1)
    if tl.load(gradients + batch) == 0:
        return
    sums, i, j = _tile_of_product(left, right, x, p, rows, columns, inner, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K, GROUP)
    weights = pointer_to(parameters, batch, PARAMETER, ALIGNED)
    kept, scale = kept_and_scale(hyper, shape_scale)
    row, column = (i + tl.arange(0, BLOCK_M))[:, None], (j + tl.arange(0, BLOCK_N))[None, :]
    pointers = weights + (row.to(tl.int64) * columns + column)
    inside = (row < rows) & (column < columns)
    w = tl.load(pointers, mask=inside).to(tl.float32)
    tl.store(pointers, (decayed(w, sums, kept, CAUTIOUS) - scale * sums).to(PARAMETER), mask=inside)
