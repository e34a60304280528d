"""Orthogonalisation of a batch of matrices by a Newton-Schulz polynomial: one function, several backends."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from muloco_runner.config import ConfigError, MuonBackend
from muloco_runner.optimizers.orthogonalize.cpu import orthogonalize_cpu
from muloco_runner.optimizers.orthogonalize.polynomial import Polynomial
from muloco_runner.optimizers.orthogonalize.reference import orthogonalize_reference


def choose_backend(name: str, device: torch.device) -> str:
    """The backend of that name, or for "auto" the fastest on `device`. A backend that cannot run there raises."""
    if name not in get_args(MuonBackend):
        raise ConfigError(f"backend={name!r}: must be one of {', '.join(get_args(MuonBackend))}")
    if name == "cpu" and device.type != "cpu":
        raise ConfigError(f"backend='cpu' cannot work on {device}: use auto or reference")
    if name != "auto":
        return name
    return "cpu" if device.type == "cpu" else "reference"


def orthogonalize(x_BMN: Tensor, polynomial: Polynomial, backend: str = "auto") -> Tensor:
    """Singular values of each matrix of shape (B, rows, columns) to near 1, singular vectors kept; x stays as it is.

    `reference` computes in x's dtype; the other backends choose what is fastest and give x's dtype back.
    """
    match choose_backend(backend, x_BMN.device):
        case "cpu":
            return orthogonalize_cpu(x_BMN, polynomial)
        case _:
            return orthogonalize_reference(x_BMN, polynomial)
