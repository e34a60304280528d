"""Orthogonalisation of a batch of matrices by a Newton-Schulz polynomial: one function, several backends."""

from __future__ import annotations

from importlib.util import find_spec
from typing import get_args

import torch
from torch import Tensor

from muloco_runner.config import ConfigError, MuonBackend
from muloco_runner.optimizers.orthogonalize.cpu import computes_in_bfloat16, orthogonalize_cpu
from muloco_runner.optimizers.orthogonalize.polynomial import Polynomial
from muloco_runner.optimizers.orthogonalize.reference import orthogonalize_reference

TRITON_DTYPES = {"triton": torch.float16, "triton_bfloat16": torch.bfloat16}
SMALLEST_CAPABILITY = (9, 0)
"""Compute capability from which `auto` chooses Triton: Hopper's tensor memory accelerator."""


def choose_backend(name: str, device: torch.device) -> str:
    """The backend of that name, or for "auto" the fastest on `device`. A backend that cannot run there raises."""
    if name not in get_args(MuonBackend):
        raise ConfigError(f"backend={name!r}: must be one of {', '.join(get_args(MuonBackend))}")
    if name == "cpu" and device.type != "cpu":
        raise ConfigError(f"backend='cpu' cannot work on {device}: use auto or reference")
    if name in TRITON_DTYPES:
        _require_triton(name, device)
    if name != "auto":
        return name
    if device.type == "cpu":
        return "cpu"
    suits = device.type == "cuda" and torch.cuda.get_device_capability(device) >= SMALLEST_CAPABILITY
    return "triton" if suits and find_spec("triton") is not None else "reference"


def _require_triton(name: str, device: torch.device) -> None:
    if find_spec("triton") is None:
        raise ConfigError(f"backend={name!r} needs the package triton: pip install triton, or use auto")
    if device.type == "cpu":
        from muloco_runner.optimizers.orthogonalize.triton.workspace import is_interpreted

        if not is_interpreted():
            raise ConfigError(f"backend={name!r} cannot work on {device}: use auto, reference or cpu")


def result_dtype(backend: str, rows: int, columns: int, dtype: torch.dtype) -> torch.dtype:
    """The precision in which a chosen backend computes on matrices of that shape: its results lose nothing in it."""
    if backend == "cpu" and computes_in_bfloat16(rows, columns, dtype):
        return torch.bfloat16
    if backend in TRITON_DTYPES:
        from muloco_runner.optimizers.orthogonalize.triton.workspace import storage_dtype

        return storage_dtype(rows, columns, TRITON_DTYPES[backend])
    return dtype


def matrices_at_once(backend: str, rows: int, columns: int) -> int:
    """How many matrices of that shape a chosen backend works on together."""
    if backend in TRITON_DTYPES:
        from muloco_runner.optimizers.orthogonalize.triton import tiles

        return tiles.matrices_at_once(rows, columns)
    # A few for each thread of a CPU. The same everywhere: ranks that share matrices must agree.
    return 8 if backend == "cpu" else 16


def works_matrix_by_matrix(backend: str, rows: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether a chosen backend works on one matrix after the other, so that threads may share them."""
    return backend == "cpu" and computes_in_bfloat16(rows, columns, dtype)


def orthogonalize(x_BMN: Tensor, polynomial: Polynomial, backend: str = "auto") -> Tensor:
    """Singular values of each matrix of shape (B, rows, columns) to near 1, singular vectors kept; x stays as it is.

    `reference` computes in x's dtype; the other backends choose what is fastest and give x's dtype back.
    """
    if x_BMN.ndim != 3:
        raise ValueError(f"a tensor of shape {tuple(x_BMN.shape)}: must be a batch of matrices, (B, rows, columns)")
    chosen = choose_backend(backend, x_BMN.device)
    if chosen == "cpu":
        return orthogonalize_cpu(x_BMN, polynomial)
    if chosen in TRITON_DTYPES:
        from muloco_runner.optimizers.orthogonalize.triton import orthogonalize_triton

        return orthogonalize_triton(x_BMN, polynomial, TRITON_DTYPES[chosen])
    return orthogonalize_reference(x_BMN, polynomial)
