"""Orthogonalisation on a CPU: bfloat16 where the processor multiplies it natively, else folded float32. Never float16.

Three savings over the polynomial as written, each product one call of the matrix library:

* `b A + c A^2` and `a X + B X` are folded into `addmm`, so that their sums are made in float32, before rounding;
* symmetric products are computed by blocks of rows up to the diagonal, the rest is mirrored;
* on rectangles the polynomial runs on A = X X^T alone (Gram form) and meets X once in `GRAM_STEPS` steps. From A on,
  everything commutes and is symmetric. Fresh Gram matrices keep rounding errors from growing.

Axes: B matrices, M the smaller side, N the larger.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from muloco_runner.optimizers.orthogonalize.polynomial import Coefficients, Polynomial
from muloco_runner.optimizers.orthogonalize.reference import normalise

# Measured with benchmarks/muon_step.py on a CPU with AVX512-BF16.
SMALLEST_BFLOAT16_SIDE = 128
"""Below it, calls cost more than their arithmetic: one batched call in float32 is faster and more exact."""
BLOCK_ROWS = 256
"""Rows of a block of a symmetric product: the fewest that the library multiplies at full speed."""
GRAM_ASPECT = 1.5
"""N/M from which the Gram form is faster."""
SMALLEST_GRAM_SIDE = 384
"""Below it the Gram form gains little and errs more than the usual loop."""
GRAM_STEPS = 2
"""Steps between two Gram matrices: three are faster, but less exact than the plain form on rank-deficient input."""


@cache
def has_bfloat16() -> bool:
    """Whether this processor has bfloat16 instructions that torch uses."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def orthogonalize_cpu(x_BMN: Tensor, polynomial: Polynomial) -> Tensor:
    """As `orthogonalize_reference`, for a batch of matrices on the CPU; float64 stays float64."""
    tall = x_BMN.shape[-2] > x_BMN.shape[-1]
    x_BMN = x_BMN.mT if tall else x_BMN
    if x_BMN.dtype == torch.float64 or x_BMN.shape[-2] < SMALLEST_BFLOAT16_SIDE or not has_bfloat16():
        out_BMN = _folded(normalise(x_BMN, polynomial), polynomial)
    else:
        out_BMN = torch.empty_like(x_BMN)
        workspace = _Workspace(*x_BMN.shape[-2:])
        for x_MN, out_MN in zip(x_BMN.unbind(), out_BMN.unbind(), strict=True):
            out_MN.copy_(workspace.orthogonalize(normalise(x_MN, polynomial), polynomial.steps))
    return out_BMN.mT if tall else out_BMN


def _folded(x_BMN: Tensor, polynomial: Polynomial) -> Tensor:
    for a, b, c in polynomial.steps:
        gram_BMM = x_BMN @ x_BMN.mT
        x_BMN = torch.baddbmm(x_BMN, torch.baddbmm(gram_BMM, gram_BMM, gram_BMM, beta=b, alpha=c), x_BMN, beta=a)
    return x_BMN


class _Workspace:
    """Buffers in bfloat16 for one matrix at a time, which thus stays in the cache."""

    def __init__(self, m: int, n: int) -> None:
        self.x_MN, self.next_MN = (torch.empty(m, n, dtype=torch.bfloat16) for _ in range(2))
        self.gram_MM, self.r_MM, self.s_MM, self.next_MM = (torch.empty(m, m, dtype=torch.bfloat16) for _ in range(4))
        self.steps_at_once = GRAM_STEPS if m >= SMALLEST_GRAM_SIDE and n >= GRAM_ASPECT * m else 1

    def orthogonalize(self, x_MN: Tensor, steps: tuple[Coefficients, ...]) -> Tensor:
        """All steps on a normalised matrix; the result is overwritten by the next call."""
        self.x_MN.copy_(x_MN)
        for first in range(0, len(steps), self.steps_at_once):
            p = self._polynomial_of_gram(steps[first : first + self.steps_at_once])
            torch.addmm(self.x_MN, self.s_MM, self.x_MN, beta=p, out=self.next_MN)
            self.x_MN, self.next_MN = self.next_MN, self.x_MN
        return self.x_MN

    def _polynomial_of_gram(self, steps: tuple[Coefficients, ...]) -> float:
        """Leaves S and returns p such that p X + S X are the given steps on X.

        A step multiplies X by a I + R with R = b A + c A^2. The multiple of I is kept apart: on the diagonal, where
        it is large, bfloat16 would round away the rest.
        """
        _symmetric(self.gram_MM, self.x_MN, self.x_MN.mT)
        p = 1.0
        for index, (a, b, c) in enumerate(steps):
            r_MM = self.s_MM if index == 0 else self.r_MM
            _symmetric(r_MM, self.gram_MM, self.gram_MM, self.gram_MM, beta=b, alpha=c)
            if index > 0:
                # (a I + R) (p I + S) - a p I = a S + R S + p R
                _symmetric(self.next_MM, r_MM, self.s_MM, self.s_MM, beta=a)
                self.s_MM, self.next_MM = self.next_MM.add_(r_MM, alpha=p), self.s_MM
            p *= a
            if index + 1 < len(steps):
                # A <- (a I + R) A (a I + R)
                _symmetric(self.next_MM, self.gram_MM, r_MM, self.gram_MM, beta=a)
                _symmetric(self.gram_MM, r_MM, self.next_MM, self.next_MM, beta=a)
        return p


def _symmetric(out_MM: Tensor, left: Tensor, right: Tensor, add_MM: Tensor | None = None, beta: float = 0.0,
               alpha: float = 1.0) -> None:  # fmt: skip
    """out = alpha left @ right + beta add, where that is symmetric; `out` shares memory with no other argument."""
    m = out_MM.shape[0]
    for top in range(0, m, BLOCK_ROWS):
        end = min(top + BLOCK_ROWS, m)
        rows_out, columns = out_MM[top:end, :end], right[:, :end]
        if add_MM is None:
            torch.mm(left[top:end], columns, out=rows_out)
        else:
            torch.addmm(add_MM[top:end, :end], left[top:end], columns, beta=beta, alpha=alpha, out=rows_out)
        out_MM[:top, top:end] = out_MM[top:end, :top].mT
