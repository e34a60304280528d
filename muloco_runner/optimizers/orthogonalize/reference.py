"""The readable orthogonalisation: the polynomial as its paper writes it, in its input's dtype (float32 or float64).

Axes: B matrices of one shape, M the smaller side, N the larger.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muloco_runner.optimizers.orthogonalize.polynomial import Polynomial

# Below the smallest normal float32 nothing is left to orthogonalise: such a matrix, all zeros included, gives zeros.
SMALLEST_NORM = torch.finfo(torch.float32).tiny


def normalise(x_BMN: Tensor, polynomial: Polynomial) -> Tensor:
    """X over its Frobenius norm (and the margin), in X's dtype, whatever the scale of X.

    Squares are summed in float64: in float32 they overflow above 1e19 and vanish below 1e-22.
    """
    norm_B11 = torch.linalg.vector_norm(x_BMN, dim=(-2, -1), keepdim=True, dtype=torch.float64)
    return x_BMN / (norm_B11 * polynomial.norm_margin).clamp_(min=SMALLEST_NORM).to(x_BMN.dtype)


def orthogonalize_reference(x_BMN: Tensor, polynomial: Polynomial) -> Tensor:
    """Singular values of each matrix to near 1, singular vectors kept; any shape (..., rows, columns)."""
    tall = x_BMN.shape[-2] > x_BMN.shape[-1]
    x_BMN = normalise(x_BMN.mT if tall else x_BMN, polynomial)
    for a, b, c in polynomial.steps:
        gram_BMM = x_BMN @ x_BMN.mT
        x_BMN = a * x_BMN + (b * gram_BMM + c * gram_BMM @ gram_BMM) @ x_BMN
    return x_BMN.mT if tall else x_BMN
