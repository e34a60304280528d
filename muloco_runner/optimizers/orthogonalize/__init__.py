"""Orthogonalisation of a batch of matrices by a Newton-Schulz polynomial: one function, several backends."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Literal, assert_never, get_args

import torch
from torch import Tensor

from muloco_runner.config import ConfigError, MuonBackend
from muloco_runner.muon_rule.polynomial import Polynomial
from muloco_runner.optimizers.arena import Arena
from muloco_runner.optimizers.orthogonalize.cpu import computes_in_bfloat16, orthogonalize_cpu
from muloco_runner.optimizers.orthogonalize.reference import orthogonalize_reference

Backend = Literal["reference", "cpu", "triton", "triton_bfloat16"]
"""What computes; `MuonBackend` also has `auto`."""
TRITON_DTYPES = {"triton": torch.float16, "triton_bfloat16": torch.bfloat16}
SMALLEST_CAPABILITY = (9, 0)
"""Compute capability from which `auto` chooses Triton: Hopper's tensor memory accelerator."""


def choose_backend(name: str, device: torch.device) -> Backend:
    """Return the backend of that name, for "auto" the fastest on `device`.

    A name that there is not, or a backend that cannot run on `device`, is a `ConfigError`.
    """
    match name:
        case "auto":
            return _fastest_backend(device)
        case "reference":
            return "reference"
        case "cpu":
            if device.type != "cpu":
                raise ConfigError(f"backend='cpu' cannot work on {device}: use auto or reference")
            return "cpu"
        case "triton" | "triton_bfloat16":
            _require_triton(name, device)
            return name
    raise ConfigError(f"backend={name!r}: must be one of {', '.join(get_args(MuonBackend))}")


def _fastest_backend(device: torch.device) -> Backend:
    if device.type == "cpu":
        return "cpu"
    return "triton" if device.type == "cuda" and why_no_kernels(device) is None else "reference"


@cache
def why_no_kernels(device: torch.device) -> str | None:
    """Return why the Triton kernels do not run on that GPU, or, interpreted, on a CPU; None where they do."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu":
        return None
    from muloco_runner.optimizers.orthogonalize.triton.tiles import LARGEST_SHARED_MEMORY

    properties = torch.cuda.get_device_properties(device)
    if (properties.major, properties.minor) < SMALLEST_CAPABILITY:
        return f"{properties.name} has compute capability {properties.major}.{properties.minor}: they need 9.0"
    shared = getattr(properties, "shared_memory_per_block_optin", 0)  # other vendors' GPUs have no such number
    if shared < LARGEST_SHARED_MEMORY:
        return (
            f"{properties.name} offers {shared:,} bytes of shared memory a block: they need {LARGEST_SHARED_MEMORY:,}"
        )
    return None


def _require_triton(name: str, device: torch.device) -> None:
    if find_spec("triton") is None:
        raise ConfigError(f"backend={name!r} needs the package triton: pip install triton, or use auto")
    if device.type == "cpu":
        from muloco_runner.optimizers.orthogonalize.triton.workspace import is_interpreted

        if not is_interpreted():
            raise ConfigError(f"backend={name!r} cannot work on {device}: use auto, reference or cpu")


def result_dtype(backend: Backend, rows: int, columns: int, dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which a backend computes on (rows, columns) in `dtype`: results lose nothing in it."""
    match backend:
        case "reference":
            return dtype
        case "cpu":
            return torch.bfloat16 if computes_in_bfloat16(rows, columns, dtype) else dtype
        case "triton" | "triton_bfloat16":
            from muloco_runner.optimizers.orthogonalize.triton.workspace import storage_dtype

            return storage_dtype(rows, columns, TRITON_DTYPES[backend])
        case _:
            assert_never(backend)


def matrices_at_once(backend: Backend, rows: int, columns: int) -> int:
    """Return how many matrices (rows, columns) a backend works on together.

    The same on every machine: ranks that share matrices must agree.
    """
    match backend:
        case "reference":
            return 16
        case "cpu":
            return 8  # a few for each thread
        case "triton" | "triton_bfloat16":
            from muloco_runner.optimizers.orthogonalize.triton import tiles

            return tiles.matrices_at_once(rows, columns)
        case _:
            assert_never(backend)


def works_matrix_by_matrix(backend: Backend, rows: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether a chosen backend works on one matrix after the other, so that threads may share them."""
    return backend == "cpu" and computes_in_bfloat16(rows, columns, dtype)


def orthogonalize(
    x_BMN: Tensor,
    polynomial: Polynomial,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
    arena: Arena | None = None,
) -> Tensor:
    """Return each matrix of `x_BMN` (B, rows, columns) with its singular values near 1 and its singular vectors kept.

    `reference` computes in x's dtype; the other backends choose what is fastest. The result has `dtype`, by default
    x's. `arena` is memory to work in, where a backend needs some. A tensor that is no batch of matrices is a
    `ValueError`.
    """
    dtype = dtype or x_BMN.dtype
    if x_BMN.ndim != 3:
        raise ValueError(f"a tensor of shape {tuple(x_BMN.shape)}: must be a batch of matrices, (B, rows, columns)")
    chosen = choose_backend(backend, x_BMN.device)
    match chosen:
        case "reference":
            return orthogonalize_reference(x_BMN, polynomial).to(dtype)
        case "cpu":
            return orthogonalize_cpu(x_BMN, polynomial).to(dtype)
        case "triton" | "triton_bfloat16":
            from muloco_runner.optimizers.orthogonalize.triton import orthogonalize_triton

            return orthogonalize_triton(x_BMN, polynomial, TRITON_DTYPES[chosen], dtype, arena)
        case _:
            assert_never(chosen)
