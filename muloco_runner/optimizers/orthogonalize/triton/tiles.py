"""The tiles of each product: explicit tables, since tuning at run time would need a GPU to test. `waves` chooses.

The larger tile reads less for the same arithmetic; the smaller ones fill the GPU when there are few of them, and leave
room for several programs a processor, of which one writes its result while another multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass

NUM_PROCESSORS = 132
"""Streaming multiprocessors of an H100."""

_BARRIERS = 1024


@dataclass(frozen=True)
class Tile:
    """A block of the result, how deep it reads at once, how it is compiled, and how fast that is."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    programs: int = 1
    """Programs that a processor runs at once: as many as its registers and shared memory hold."""
    alone: float = 0.5
    """Share of a processor's rate that one program reaches alone. Assumed until a GPU has measured it."""
    together: float = 0.5
    """Share that `programs` of them reach together. Assumed, too."""

    def share_of_rate(self, depth: int) -> float:
        """Return the share of a processor's rate that `depth` programs on it reach, at most `programs`."""
        if self.programs == 1:
            return self.together
        return self.alone + (self.together - self.alone) * (depth - 1) / (self.programs - 1)

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


# Largest first. All of them compile for Hopper without spills, with wgmma and asynchronous copies. One depth for all:
# sums are made in the same order, whatever tile is taken.
SYMMETRIC = (
    Tile(256, 128, 64, 8, 4, programs=1, alone=0.85, together=0.85),
    Tile(128, 128, 64, 8, 3, programs=2, alone=0.65, together=0.80),
    Tile(64, 64, 64, 4, 4, programs=3, alone=0.25, together=0.50),
)
"""Tiles of `symmetric_product`; block_m is a multiple of block_n."""
PRODUCT = (
    Tile(128, 256, 64, 8, 4, programs=1, alone=0.85, together=0.85),
    Tile(128, 128, 64, 8, 3, programs=2, alone=0.65, together=0.80),
    Tile(64, 64, 64, 4, 4, programs=3, alone=0.25, together=0.50),
)
"""Tiles of `product`."""
INTO_PARAMETERS = (
    # Its epilogue holds float32 weights too: 172 registers, so one program a processor; with fewer it would spill.
    Tile(128, 128, 64, 8, 3, programs=1, alone=0.65, together=0.65),
    Tile(128, 64, 64, 8, 4, programs=2, alone=0.45, together=0.65),
    Tile(64, 64, 64, 4, 4, programs=3, alone=0.25, together=0.50),
)
"""Tiles of `product_into_parameters`."""
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


def matrices_at_once(rows: int, columns: int) -> int:
    """Return how many matrices of a bucket share one launch at most: eight rounds of the GPU in the symmetric product.

    More would only need a larger workspace.
    """
    return max(1, -(-8 * NUM_PROCESSORS // tiles_of_triangle(min(rows, columns), SYMMETRIC[0])))
