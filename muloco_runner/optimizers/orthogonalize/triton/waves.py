"""Which tile each product takes: the fastest by a model that counts rounds of programs, the last one too.

Programs run as many at once as the processors hold, and a last round takes as long as it is deep: 144 programs on 132
processors need two rounds. The rates are assumed until a GPU has measured them: `muloco-train --check-gpu tiles`.
"""

from __future__ import annotations

from functools import cache

import torch

from muloco_runner.optimizers.orthogonalize.triton import tiles
from muloco_runner.optimizers.orthogonalize.triton.tiles import NUM_PROCESSORS, Tile

PROCESSOR_RATE = 800e12 / NUM_PROCESSORS
"""Half-precision operations a second of one processor, at what the power of an H100 allows."""
EDGE_SECONDS = 2.0e-6
"""A program's first loads and its epilogue, where nothing else runs on its processor."""
HIDDEN_EDGES = 0.4
"""Share of that which remains where another program multiplies meanwhile."""
LAUNCH_SECONDS = 2.5e-6
"""Gap between two launches of which one needs the other's result."""


def launch_seconds(num_programs: int, tile: Tile, inner: int) -> float:
    """Return the seconds that `num_programs` programs take by the model, each a tile of sums over `inner`."""
    alone = 2.0 * tile.block_m * tile.block_n * inner / PROCESSOR_RATE
    rounds, rest = divmod(num_programs, NUM_PROCESSORS * tile.programs)
    depths = [tile.programs] * rounds + ([-(-rest // NUM_PROCESSORS)] if rest else [])
    edges = EDGE_SECONDS * (1 + (len(depths) - 1) * (HIDDEN_EDGES if tile.programs > 1 else 1.0))
    return LAUNCH_SECONDS + edges + sum(depth * alone / tile.share_of_rate(depth) for depth in depths)


def symmetric_tile(side: int, batch: int, inner: int, dtype: torch.dtype) -> Tile:
    """Return the tile for `batch` symmetric results of `side` rows, sums over `inner`."""
    if dtype == torch.float32:
        return tiles.FLOAT32
    programs = tuple(batch * tiles.tiles_of_triangle(side, tile) for tile in tiles.SYMMETRIC)
    return _fastest(tiles.SYMMETRIC, programs, inner)


def product_tile(
    rows: int, columns: int, batch: int, dtype: torch.dtype, table: tuple[Tile, ...] | None = None
) -> Tile:
    """Return the tile of `table`, by default `PRODUCT`, for `batch` results (rows, columns), sums over the smaller."""
    if dtype == torch.float32:
        return tiles.FLOAT32
    table = table or tiles.PRODUCT
    programs = tuple(batch * tiles.tiles_of_product(rows, columns, tile) for tile in table)
    return _fastest(table, programs, min(rows, columns))


@cache
def _fastest(table: tuple[Tile, ...], num_programs: tuple[int, ...], inner: int) -> Tile:
    seconds = [launch_seconds(number, tile, inner) for number, tile in zip(num_programs, table, strict=True)]
    return table[seconds.index(min(seconds))]
