"""Which tile each product uses, by shape: an explicit table, since tuning at run time would need a GPU to test.

The larger tile reads less for the same arithmetic; the smaller ones fill the GPU when there are few of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

NUM_PROCESSORS = 132
"""Streaming multiprocessors of an H100."""

_BARRIERS = 1024


@dataclass(frozen=True)
class Tile:
    """A block of the result, how deep it reads at once, and how it is compiled."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    @property
    def shared_memory(self) -> int:
        """Most bytes of a processor's shared memory that a program takes: operands in half precision, and barriers."""
        return 2 * self.num_stages * (self.block_m + self.block_n) * self.block_k + _BARRIERS

    def constants(self) -> dict[str, int]:
        """Return the constants of the kernels."""
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_K": self.block_k}

    def options(self) -> dict[str, int]:
        """Return the options of the compiler."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


# Largest first. All of them compile for Hopper without spills, with wgmma and asynchronous copies. The 128-wide tiles
# leave room for two programs a processor.
SYMMETRIC = (Tile(256, 128, 64, 8, 4), Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 4))
"""Tiles of `symmetric_product`; block_m is a multiple of block_n."""
PRODUCT = (Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 4))
"""Tiles of `product`."""
INTO_PARAMETERS = (Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 4))
"""Tiles of `product_into_parameters`, whose epilogue holds float32 weights too."""
FLOAT32 = Tile(32, 32, 32, 4, 2)
"""The tile of every product in float32, which only matrices too small for half precision use."""

LARGEST_SHARED_MEMORY = max(tile.shared_memory for tile in (*SYMMETRIC, *PRODUCT, *INTO_PARAMETERS))
"""Bytes of shared memory a block that a GPU must offer for every tile."""


def tiles_of_triangle(side: int, tile: Tile) -> int:
    """Return the programs that compute one symmetric product."""
    rows = -(-side // tile.block_m)
    return tile.block_m // tile.block_n * rows * (rows + 1) // 2


def tiles_of_product(rows: int, columns: int, tile: Tile) -> int:
    """Return the programs that compute one product (rows, columns)."""
    return -(-rows // tile.block_m) * -(-columns // tile.block_n)


def symmetric_tile(side: int, batch: int, dtype: torch.dtype) -> Tile:
    """Return the largest tile of which `batch` symmetric results of `side` rows give every processor one."""
    if dtype == torch.float32:
        return FLOAT32
    return next((t for t in SYMMETRIC if batch * tiles_of_triangle(side, t) >= NUM_PROCESSORS), SYMMETRIC[-1])


def product_tile(rows: int, columns: int, batch: int, dtype: torch.dtype, table: tuple[Tile, ...] = PRODUCT) -> Tile:
    """Return the largest tile of `table` of which `batch` results (rows, columns) give every processor one."""
    if dtype == torch.float32:
        return FLOAT32
    return next((t for t in table if batch * tiles_of_product(rows, columns, t) >= NUM_PROCESSORS), table[-1])


def matrices_at_once(rows: int, columns: int) -> int:
    """Return how many matrices of a bucket share one launch: eight rounds of the GPU in the symmetric product.

    More would only need a larger workspace.
    """
    return max(1, -(-8 * NUM_PROCESSORS // tiles_of_triangle(min(rows, columns), SYMMETRIC[0])))
