"""The least that a Muon step can take: arithmetic and memory traffic over a machine's rates."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from benchmarks.models import model_named

Shape = tuple[int, int]

BYTES_A_PARAMETER = 24
"""Gradient read; momentum read and written; weight read and written; the half-precision matrix written."""
H100 = (800e12, 3.0e12)
"""Half-precision operations and bytes a second that an H100 reaches at best."""
STEPS = 5
GRAM_STRETCHES = (3, 2)


@dataclass(frozen=True)
class Ladder:
    """The hidden matrices of one model, by shape, and the size of its embedding and head together."""

    name: str
    shapes: dict[Shape, int]
    embedding_and_head: int

    @classmethod
    def of(cls, name: str) -> Ladder:
        """The model that conf/model names."""
        model = model_named(name)
        width, ffn, layers = model.width, model.ffn_width, model.num_layers
        shapes = {(width, width): 4 * layers, (ffn, width): 2 * layers, (width, ffn): layers}
        return cls(name, shapes, 2 * model.vocab_size * width)

    @property
    def num_params(self) -> int:
        return sum(rows * columns * count for (rows, columns), count in self.shapes.items())

    def part(self, fraction: float) -> Ladder:
        """A model with that share of the layers, at least one matrix of each shape."""
        return Ladder(self.name, {shape: max(1, round(n * fraction)) for shape, n in self.shapes.items()}, 0)


def operations(shape: Shape, *, symmetric: bool, gram: bool) -> float:
    """Floating-point operations of five steps on one matrix; symmetric products at half price."""
    m, n = sorted(shape)
    half = 0.5 if symmetric else 1.0
    if not gram or m == n:
        return STEPS * (half * (2 * m * m * n + 2 * m**3) + 2 * m * m * n)
    rectangular = len(GRAM_STRETCHES) * (half * 2 * m * m * n + 2 * m * m * n)
    # A stretch of k steps: k times R, k-1 times its product with the steps before, 2(k-1) for the next A.
    square = sum(k + 3 * (k - 1) for k in GRAM_STRETCHES) * half * 2 * m**3
    return rectangular + square


def floor_seconds(ladder: Ladder, rates: tuple[float, float], *, symmetric: bool, gram: bool) -> float:
    """Orthogonalisation and everything elementwise, one after the other."""
    work = sum(n * operations(shape, symmetric=symmetric, gram=gram) for shape, n in ladder.shapes.items())
    return work / rates[0] + BYTES_A_PARAMETER * ladder.num_params / rates[1]


def measured_rates() -> tuple[float, float]:
    """Operations a second of a large bfloat16 product here, and bytes a second of a copy: best of several."""
    a = torch.randn(2048, 2048, dtype=torch.bfloat16)
    big = torch.empty(2**26)
    out, copied = torch.empty_like(a), torch.empty_like(big)
    operations_a_second = 2 * 2048**3 / min(_seconds(lambda: torch.mm(a, a, out=out)) for _ in range(8))
    bytes_a_second = 2 * big.nbytes / min(_seconds(lambda: copied.copy_(big)) for _ in range(4))
    return operations_a_second, bytes_a_second


def _seconds(call: object) -> float:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began
