"""Orthogonalisation on a CPU: bfloat16 where the processor multiplies it natively, else folded float32. Never float16.

Each thread works on matrices of its own. Three savings over the polynomial as written, each product one call of the
matrix library:

* `b A + c A^2` and `a X + B X` are folded into `addmm`, so that their sums are made in float32, before rounding;
* symmetric products are computed by blocks of rows up to the diagonal, the rest is mirrored;
* on rectangles the polynomial runs on A = X X^T alone and meets X once in two steps (`gram_form`).

Axes: B matrices, M the smaller side, N the larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from muloco_runner.muon_rule.polynomial import Polynomial
from muloco_runner.optimizers.orthogonalize.gram_form import Addend, GramForm
from muloco_runner.optimizers.orthogonalize.reference import normalise
from muloco_runner.optimizers.threads import share_over_threads

# Measured with benchmarks/muon_step.py on a CPU with AVX512-BF16.
SMALLEST_BFLOAT16_SIDE = 128
"""Below it, calls cost more than their arithmetic: one batched call in float32 is faster and more exact."""
BLOCK_ROWS = 256
"""Rows of a block of a symmetric product: the fewest that the library multiplies at full speed."""
GRAM_ASPECT = 1.5
"""N/M from which the Gram form is faster."""
SMALLEST_GRAM_SIDE = 384
"""Below it the Gram form gains little and errs more than the usual loop."""
GRAM_STRETCHES = (2, 2)
"""Steps between two Gram matrices: the first stretch and the others. Three, one and one take as long and err less on
Gaussian matrices, but blow up where one singular value outweighs all others (sixteenfold with `muloco`): the first
step leaves its square so small that bfloat16 turns it negative, and the stretch goes on from there."""


@cache
def has_bfloat16() -> bool:
    """Whether this processor has bfloat16 instructions that torch uses."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def computes_in_bfloat16(rows: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether `orthogonalize_cpu` does so on matrices of that shape and dtype."""
    return dtype != torch.float64 and min(rows, columns) >= SMALLEST_BFLOAT16_SIDE and has_bfloat16()


def orthogonalize_cpu(x_BMN: Tensor, polynomial: Polynomial) -> Tensor:
    """As `orthogonalize_reference`, for a batch of matrices on the CPU; float64 stays float64."""
    rows, columns = x_BMN.shape[-2:]
    tall = rows > columns
    if not computes_in_bfloat16(rows, columns, x_BMN.dtype):
        wide_BRC = x_BMN.to(torch.promote_types(x_BMN.dtype, torch.float32))
        out_BMN = _folded(normalise(wide_BRC.mT if tall else wide_BRC, polynomial), polynomial)
        return (out_BMN.mT if tall else out_BMN).to(x_BMN.dtype)
    out_BRC = torch.empty_like(x_BMN)

    def work(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        workspace = _Workspace(rows, columns)
        for x_RC, out_RC in pairs:
            workspace.x.copy_(_normalise(x_RC.float(), polynomial))
            out_RC.copy_(workspace.finish(workspace.run(polynomial.steps)))

    share_over_threads(work, list(zip(x_BMN.unbind(), out_BRC.unbind(), strict=True)))
    return out_BRC


def _normalise(x_RC: Tensor, polynomial: Polynomial) -> Tensor:
    """As `normalise`, which on a CPU takes most of its time to sum in float64: only where float32 does not bear it."""
    norm = float(torch.linalg.vector_norm(x_RC))
    if not 1e-15 < norm < 1e15:
        return normalise(x_RC, polynomial)
    return x_RC / max(norm * polynomial.norm_margin + polynomial.epsilon, polynomial.norm_floor)


def _folded(x_BMN: Tensor, polynomial: Polynomial) -> Tensor:
    for a, b, c in polynomial.steps:
        gram_BMM = x_BMN @ x_BMN.mT
        x_BMN = torch.baddbmm(x_BMN, torch.baddbmm(gram_BMM, gram_BMM, gram_BMM, beta=b, alpha=c), x_BMN, beta=a)
    return x_BMN


class _Workspace(GramForm):
    """Buffers in bfloat16 for one matrix at a time, which thus stays in the cache.

    The matrix lies as it came. Of a tall one X is the transpose, and p X + S X is made as p X^T + X^T S: transposing
    costs more than it would save.
    """

    def __init__(self, rows: int, columns: int) -> None:
        m, n = sorted((rows, columns))
        self.tall = rows > columns
        self.x, self.next_x = (torch.empty(rows, columns, dtype=torch.bfloat16) for _ in range(2))
        self.gram_MM, self.r_MM, self.s_MM, self.next_MM, self.shifted_MM = (
            torch.empty(m, m, dtype=torch.bfloat16) for _ in range(5)
        )
        if m >= SMALLEST_GRAM_SIDE and n >= GRAM_ASPECT * m:
            self.stretches = GRAM_STRETCHES

    def finish(self, p: float) -> Tensor:
        """p X + S X as the matrix lies; overwritten by the next one."""
        self._advance(p)
        return self.x

    def _advance(self, p: float) -> None:
        left, right = (self.x, self.s_MM) if self.tall else (self.s_MM, self.x)
        torch.addmm(self.x, left, right, beta=p, out=self.next_x)
        self.x, self.next_x = self.next_x, self.x

    def _fresh_gram(self) -> None:
        x_MN = self.x.mT if self.tall else self.x
        self._symmetric(self.gram_MM, x_MN, x_MN.mT, 1.0)

    def _symmetric(self, out_MM: Tensor, left_MM: Tensor, right_MM: Tensor, factor: float, *addends: Addend) -> None:
        if len(addends) == 2:
            # L R + w R + v L = (L + w I) R + v L: with one sum after the product, it is rounded once.
            (first_MM, weight), addend = addends
            assert first_MM is right_MM
            assert factor == 1
            left_MM = self.shifted_MM.copy_(left_MM)
            left_MM.diagonal().add_(weight)
            addends = (addend,)
        m = out_MM.shape[0]
        for top in range(0, m, BLOCK_ROWS):
            end = min(top + BLOCK_ROWS, m)
            rows_out, columns = out_MM[top:end, :end], right_MM[:, :end]
            if addends:
                ((addend_MM, weight),) = addends
                torch.addmm(
                    addend_MM[top:end, :end], left_MM[top:end], columns, beta=weight, alpha=factor, out=rows_out
                )
            else:
                torch.mm(left_MM[top:end], columns, out=rows_out)
            # A transposed copy between slices is slow; one of memory in one piece, with copies around it, is not.
            out_MM[:top, top:end] = out_MM[top:end, :top].contiguous().mT.contiguous()
