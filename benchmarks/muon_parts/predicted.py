"""What the products of a Muon step take on an H100 by the model of `waves`.

`python -m benchmarks.muon_parts.predicted` prints it by model. A product takes what the model says, or as long as its
bytes need: from the second-level cache, where its tensors for all matrices of the launch fit there, else from memory.
Needs triton, no GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.muon_parts.floors import BYTES_A_PARAMETER, H100, Ladder, Shape
from muloco_runner.muon_rule.polynomial import named_polynomial
from muloco_runner.optimizers.orthogonalize.gram_form import Addend, GramForm
from muloco_runner.optimizers.orthogonalize.triton import tiles, waves
from muloco_runner.optimizers.orthogonalize.triton.tiles import Tile
from muloco_runner.optimizers.orthogonalize.triton.workspace import GRAM_ASPECT, STRETCHES

CACHE_BYTES, CACHE_RATE = 40e6, 5.5e12
"""Of an H100's second-level cache of 50 MB what a product may count on; bytes a second from there."""
MODELS = ("150m", "416m", "914m", "1.76b", "3.1b")
Choose = Callable[[tuple[Tile, ...], list[int], int], int]
"""Maps tiles, the programs of each and the length of sums to the number of the tile that is taken."""


def by_waves(table: tuple[Tile, ...], programs: list[int], inner: int) -> int:
    """The rule of `waves`."""
    seconds = [waves.launch_seconds(number, tile, inner) for number, tile in zip(programs, table, strict=True)]
    return seconds.index(min(seconds))


def by_size(table: tuple[Tile, ...], programs: list[int], inner: int) -> int:
    """The largest tile that gives every processor one: the rule before."""
    filling = (n for n, number in enumerate(programs) if number >= tiles.NUM_PROCESSORS)
    return next(filling, len(table) - 1)


class Predicted(GramForm):
    """The order of products of a Muon step on `batch` matrices of a shape; adds up what they take."""

    def __init__(self, batch: int, shape: Shape, choose: Choose) -> None:
        self.batch, self.shape, self.choose = batch, shape, choose
        self.short, self.long = sorted(shape)
        if self.long >= GRAM_ASPECT * self.short:
            self.stretches = STRETCHES[torch.float16]
        self.r_MM = self.s_MM = self.next_MM = self.gram_MM = torch.empty(0)
        self.seconds = 2 * waves.LAUNCH_SECONDS  # the prologue's launches
        self.run(named_polynomial("muloco", 5).steps)
        self._product(tiles.INTO_PARAMETERS, 2)

    def _fresh_gram(self) -> None:
        self._add(self._of_triangle(), tiles.SYMMETRIC, self.long, self.short * (self.long + self.short))

    def _symmetric(self, out_MM: Tensor, left_MM: Tensor, right_MM: Tensor, factor: float, *addends: Addend) -> None:
        self._add(self._of_triangle(), tiles.SYMMETRIC, self.short, (2 + (right_MM is not left_MM)) * self.short**2)

    def _advance(self, p: float) -> None:
        self._product(tiles.PRODUCT, 1)

    def _product(self, table: tuple[Tile, ...], written: int) -> None:
        programs = [tiles.tiles_of_product(*self.shape, tile) for tile in table]
        values = self.short**2 + (1 + written) * self.short * self.long
        self._add(programs, table, self.short, values)

    def _of_triangle(self) -> list[int]:
        return [tiles.tiles_of_triangle(self.short, tile) for tile in tiles.SYMMETRIC]

    def _add(self, programs: list[int], table: tuple[Tile, ...], inner: int, values: int) -> None:
        programs = [self.batch * number for number in programs]
        chosen = self.choose(table, programs, inner)
        nbytes = 2 * self.batch * values
        moving = nbytes / (CACHE_RATE if nbytes <= CACHE_BYTES else H100[1])
        self.seconds += max(waves.launch_seconds(programs[chosen], table[chosen], inner), waves.LAUNCH_SECONDS + moving)


def as_launched(count: int, shape: Shape) -> list[int]:
    """Sizes of the parts in which a bucket of `count` matrices is worked on."""
    at_once = tiles.matrices_at_once(*shape)
    return [min(at_once, count - start) for start in range(0, count, at_once)]


def in_equal_parts(count: int, shape: Shape) -> list[int]:
    """As few parts, that differ by one at most."""
    parts = len(as_launched(count, shape))
    return [count // parts + (number < count % parts) for number in range(parts)]


def in_cache(count: int, shape: Shape) -> list[int]:
    """Parts so small that what two products share stays in the second-level cache, where one matrix does."""
    short, long = sorted(shape)
    at_once = max(1, int(CACHE_BYTES / (2 * (short**2 + 2 * short * long))))
    return [min(at_once, count - start) for start in range(0, count, at_once)]


def milliseconds(
    ladder: Ladder,
    ranks: int = 1,
    choose: Choose = by_waves,
    parts: Callable[[int, Shape], Sequence[int]] = as_launched,
) -> float:
    """Return the products' time on the rank that has most matrices, without the elementwise part."""
    return 1e3 * sum(
        Predicted(batch, shape, choose).seconds
        for shape, count in ladder.shapes.items()
        for batch in parts(-(-count // ranks), shape)
    )


def main() -> int:
    columns = ["model", "ranks", "by size", "by waves", "equal parts", "in cache", "elementwise"]
    print("".join(f"{column:>13}" for column in columns), "   ms, products; by size and by waves: rules for tiles")
    for name in MODELS:
        ladder = Ladder.of(name)
        for ranks in (1, 8):
            row = [
                milliseconds(ladder, ranks, by_size),
                milliseconds(ladder, ranks),
                milliseconds(ladder, ranks, parts=in_equal_parts),
                milliseconds(ladder, ranks, parts=in_cache),
                1e3 * BYTES_A_PARAMETER * ladder.num_params / ranks / H100[1],
            ]
            print(f"{name:>13}{ranks:>13}" + "".join(f"{value:13.3f}" for value in row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
