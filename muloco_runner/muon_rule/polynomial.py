"""Newton-Schulz polynomials by name: X <- a X + (b A + c A^2) X with A = X X^T, one (a, b, c) a step.

A step maps each singular value s to a s + b s^3 + c s^5 and keeps the singular vectors; after the last one all
singular values lie near 1. The input is divided by its Frobenius norm times `norm_margin`, so that none exceeds 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, assert_never

from muloco_runner.config.inner_optimizer import Coefficients as CoefficientsName

Coefficients = tuple[float, float, float]

SMALLEST_NORM = 2.0**-126
"""The smallest normal float32. Below it nothing is left to orthogonalise: such a matrix, all zeros included, gives
zeros."""

# Keller Jordan, "Muon" (kellerjordan.github.io/posts/muon): one triple for every step.
_KELLER_JORDAN: tuple[Coefficients, ...] = ((3.4445, -4.7750, 2.0315),)

# The five steps of arXiv 2505.23725's published optimizer.
_MULOCO: tuple[Coefficients, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

# Polar Express (arXiv 2505.16932) for five steps, safety factor 2e-2, cushion 2.
_POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


@dataclass(frozen=True)
class Polynomial:
    """The steps of one orthogonalisation, in order."""

    steps: tuple[Coefficients, ...]
    norm_margin: float = 1.0
    """Factor on the Frobenius norm that the input is divided by."""
    epsilon: float = 0.0
    """Term added to that."""
    norm_floor: float = SMALLEST_NORM
    """The least that the input is divided by."""


@cache
def named_polynomial(name: CoefficientsName, num_iterations: int) -> Polynomial:
    """Return `muloco` (exactly five steps), `keller_jordan` (any number) or `polar_express` (at most five)."""
    if num_iterations < 1:
        raise ValueError(f"num_iterations={num_iterations}: must be at least 1")
    match name:
        case "keller_jordan":
            return Polynomial(_KELLER_JORDAN * num_iterations)
        case "muloco":
            if num_iterations != len(_MULOCO):
                raise ValueError(
                    f"num_iterations={num_iterations}: coefficients=muloco are five per-step triples; "
                    "use num_iterations=5 or coefficients=keller_jordan"
                )
            return Polynomial(_MULOCO)
        case "polar_express":
            if num_iterations > len(_POLAR_EXPRESS):
                raise ValueError(
                    f"num_iterations={num_iterations}: coefficients=polar_express are at most five per-step triples; "
                    "use num_iterations=5 or coefficients=keller_jordan"
                )
            return Polynomial(_POLAR_EXPRESS[:num_iterations], norm_margin=1.02)
        case _:
            assert_never(name)


def polynomial_of(group: Mapping[str, Any]) -> Polynomial:
    """Return the Newton-Schulz polynomial that a parameter group names, with its normalisation."""
    coefficients, num_iterations = group["coefficients"], group["num_iterations"]
    if isinstance(coefficients, str):
        named = named_polynomial(coefficients, num_iterations)
    else:
        named = Polynomial((tuple(coefficients),) * num_iterations)
    return replace(named, epsilon=group["epsilon"], norm_floor=max(named.norm_floor, group["norm_floor"]))
