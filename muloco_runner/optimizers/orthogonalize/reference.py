"""The readable orthogonalisation: the polynomial as its paper writes it, in its input's dtype (float32 or float64).

Axes: B matrices of one shape, M the smaller side, N the larger.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muloco_runner.muon_rule.polynomial import Polynomial


def normalise(x_BMN: Tensor, polynomial: Polynomial) -> Tensor:
    """X over its Frobenius norm (with margin, epsilon and floor), in X's dtype, whatever the scale of X.

    Squares are summed in float64: in float32 they overflow above 1e19 and vanish below 1e-22. A norm that X's dtype
    does not hold is divided by in two parts; else the second is 1.
    """
    norm_B11 = torch.linalg.vector_norm(x_BMN, dim=(-2, -1), keepdim=True, dtype=torch.float64)
    divisor_B11 = (norm_B11 * polynomial.norm_margin + polynomial.epsilon).clamp_(min=polynomial.norm_floor)
    first_B11 = divisor_B11.clamp(max=torch.finfo(x_BMN.dtype).max / 2)
    x_BMN = x_BMN / first_B11.to(x_BMN.dtype)
    return x_BMN.div_((divisor_B11 / first_B11).to(x_BMN.dtype))


def orthogonalize_reference(x_BMN: Tensor, polynomial: Polynomial) -> Tensor:
    """Singular values of each matrix to near 1, singular vectors kept; any shape (..., rows, columns)."""
    tall = x_BMN.shape[-2] > x_BMN.shape[-1]
    x_BMN = normalise(x_BMN.mT if tall else x_BMN, polynomial)
    for a, b, c in polynomial.steps:
        gram_BMM = x_BMN @ x_BMN.mT
        x_BMN = a * x_BMN + (b * gram_BMM + c * gram_BMM @ gram_BMM) @ x_BMN
    return x_BMN.mT if tall else x_BMN
