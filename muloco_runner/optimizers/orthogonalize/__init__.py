"""Orthogonalisation of a batch of matrices by a Newton-Schulz polynomial: one function, several backends."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from muloco_runner.optimizers.orthogonalize.polynomial import Polynomial
from muloco_runner.optimizers.orthogonalize.reference import orthogonalize_reference

Backend = Literal["reference"]


def choose_backend(name: str, device: torch.device) -> Backend:
    """The backend of that name, or for "auto" the fastest on `device`."""
    if name == "auto":
        return "reference"
    if name in get_args(Backend):
        return name  # type: ignore[return-value]
    raise ValueError(f"backend={name!r}: must be one of auto, {', '.join(get_args(Backend))}")


def orthogonalize(x_BMN: Tensor, polynomial: Polynomial, backend: Backend) -> Tensor:
    """Singular values of each matrix to near 1, singular vectors kept; x is left as it is."""
    return orthogonalize_reference(x_BMN, polynomial)
