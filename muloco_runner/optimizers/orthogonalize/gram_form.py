"""The order of products of a polynomial, which several backends share; what multiplies is theirs.

From A = X X^T on, all is symmetric and commutes. So the steps of one stretch run on A alone and meet X once, at the
stretch's end; the next stretch begins with a fresh A, which keeps rounding errors from growing. A stretch of one step
is the polynomial as written.

Axes: M the smaller side, N the larger; every tensor may lead with an axis B of matrices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from muloco_runner.muon_rule.polynomial import Coefficients

Addend = tuple[Tensor, float]
"""A tensor and its factor."""


class GramForm(ABC):
    """Buffers of one shape, and the steps on what lies in `x`. Subclasses own the buffers and multiply."""

    x: Tensor
    next_x: Tensor
    gram_MM: Tensor
    r_MM: Tensor
    s_MM: Tensor
    next_MM: Tensor
    stretches: tuple[int, int] = (1, 1)
    """Steps of the first stretch, and the most of any further one."""

    def run(self, steps: tuple[Coefficients, ...]) -> float:
        """All steps on the normalised X, but for the last product: leaves X and S, and returns p, such that
        p X + S X is the result."""
        first, further = self.stretches
        begin, end = 0, first
        while end < len(steps):
            self._advance(self._polynomial_of_gram(steps[begin:end]))
            begin, end = end, end + further
        return self._polynomial_of_gram(steps[begin:])

    def _polynomial_of_gram(self, steps: tuple[Coefficients, ...]) -> float:
        """Leaves S and returns p such that p X + S X are the given steps on X.

        A step multiplies X by a I + R with R = b A + c A^2. The multiple of I is kept apart: on the diagonal, where
        it is large, half precision would round away the rest.
        """
        self._fresh_gram()
        p = 1.0
        for index, (a, b, c) in enumerate(steps):
            r_MM = self.s_MM if index == 0 else self.r_MM
            self._symmetric(r_MM, self.gram_MM, self.gram_MM, c, (self.gram_MM, b))
            if index > 0:
                # (a I + R) (p I + S) - a p I = R S + a S + p R
                self._symmetric(self.next_MM, r_MM, self.s_MM, 1.0, (self.s_MM, a), (r_MM, p))
                self.s_MM, self.next_MM = self.next_MM, self.s_MM
            p *= a
            if index + 1 < len(steps):
                # A <- (a I + R) A (a I + R): from both sides, which stays closest to symmetric.
                self._symmetric(self.next_MM, self.gram_MM, r_MM, 1.0, (self.gram_MM, a))
                self._symmetric(self.gram_MM, r_MM, self.next_MM, 1.0, (self.next_MM, a))
        return p

    @abstractmethod
    def _fresh_gram(self) -> None:
        """A = X X^T."""

    @abstractmethod
    def _symmetric(self, out_MM: Tensor, left_MM: Tensor, right_MM: Tensor, factor: float, *addends: Addend) -> None:
        """out = factor left right + the addends, which is symmetric; `out` is none of the others."""

    @abstractmethod
    def _advance(self, p: float) -> None:
        """X <- p X + S X."""
