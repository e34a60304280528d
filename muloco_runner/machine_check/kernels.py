"""The Triton kernels of Muon: each against float64, a whole step against the reference's, repeated, and as a graph."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muloco_runner.machine_check.findings import Findings
from muloco_runner.machine_check.timing import Machine
from muloco_runner.muon_rule.polynomial import named_polynomial
from muloco_runner.optimizers import Muon
from muloco_runner.optimizers.orthogonalize import orthogonalize, why_no_kernels
from muloco_runner.optimizers.orthogonalize.reference import orthogonalize_reference

Shape = tuple[int, int, int]
_GPU_SHAPES: tuple[Shape, ...] = (
    (24, 512, 512), (12, 1408, 512), (6, 512, 1408), (9, 1024, 1024), (5, 2816, 1024), (3, 1024, 2816),
    (3, 2560, 2560), (2, 7040, 2560), (3, 300, 170), (4, 31, 500), (5, 1, 64), (1, 4608, 4608),
)  # fmt: skip
_TINY_SHAPES: tuple[Shape, ...] = ((1, 72, 40), (2, 17, 36))
_KINDS = ("gaussian", "low rank", "tiny", "huge", "zero", "spiked")
# Relative Frobenius distance to the polynomial in float64: full rank, and where singular values are missing or
# dwarfed by another, so that half precision's rounding is amplified in their place.
_TOLERANCES = {"triton": (3e-2, 8e-2), "triton_bfloat16": (1e-1, 3.5e-1)}
_FULL_RANK = ("gaussian", "tiny", "huge", "zero")


def check(machine: Machine, findings: Findings) -> None:
    """Hold every kernel against float64 over shapes, kinds of gradients and dtypes; then whole steps."""
    if why := why_no_kernels(machine.device):
        findings.add("fused kernels", why, verdict="absent")
        return
    shapes = _GPU_SHAPES if machine.is_gpu else _TINY_SHAPES
    for backend, kind, dtype in itertools.product(_TOLERANCES, _KINDS, (torch.float32, torch.bfloat16)):
        errors = {shape: _error(matrices(shape, kind, machine.device).to(dtype), backend) for shape in shapes}
        worst = max(errors, key=lambda shape: errors[shape])
        most = _TOLERANCES[backend][kind not in _FULL_RANK]
        where = f"{worst[0]} x {worst[1]} x {worst[2]}"
        name = f"{backend}, {kind} {str(dtype).removeprefix('torch.')}, worst of {len(shapes)} shapes: {where}"
        findings.at_most(name, errors[worst], most)
    _check_steps(machine, findings, shapes[:3])


def matrices(shape: Shape, kind: str, device: torch.device) -> Tensor:
    """Return a batch of gradients of that kind, the same each time."""
    generator = torch.Generator(device).manual_seed(sum(shape))

    def random(*size: int) -> Tensor:
        return torch.randn(size, device=device, generator=generator)

    batch, rows, columns = shape
    match kind:
        case "low rank":
            rank = max(1, min(rows, columns) // 8)
            return random(batch, rows, rank) @ random(batch, rank, columns)
        case "spiked":
            return random(*shape) + 100 * random(batch, rows, 1) @ random(batch, 1, columns)
        case _:
            return {"gaussian": 1.0, "tiny": 1e-12, "huge": 1e12, "zero": 0.0}[kind] * random(*shape)


def _error(x_BMN: Tensor, backend: str) -> float:
    polynomial = named_polynomial("muloco", 5)
    expected = orthogonalize_reference(x_BMN.double(), polynomial)
    got = orthogonalize(x_BMN, polynomial, backend).double()
    if not bool(got.isfinite().all()):
        return float("inf")
    return float((got - expected).norm() / expected.norm().clamp_min(1e-30))


def _check_steps(machine: Machine, findings: Findings, shapes: Sequence[Shape]) -> None:
    start = torch.cat([p.detach().flatten() for p in _parameters(machine, shapes)])
    fused = _train(machine, shapes, "triton")
    findings.holds("five steps repeat to the bit", torch.equal(fused, _train(machine, shapes, "triton")))
    reference = _train(machine, shapes, "reference")
    distance = float((fused - reference).norm() / (reference - start).norm())
    findings.at_most("five steps against the reference, of the way gone", distance, _TOLERANCES["triton"][0])
    if machine.is_gpu:
        graphed = _train(machine, shapes, "triton", cuda_graph=True)
        findings.holds("five steps as a graph equal them to the bit", torch.equal(fused, graphed))


def _parameters(machine: Machine, shapes: Sequence[Shape]) -> list[nn.Parameter]:
    """Return matrices of the shapes, and one parameter that is AdamW's."""
    generator = torch.Generator(machine.device).manual_seed(1)
    sizes = [shape[1:] for shape in shapes for _ in range(shape[0])] + [(1000, 33)]
    return [nn.Parameter(0.02 * torch.randn(s, device=machine.device, generator=generator)) for s in sizes]


def _train(machine: Machine, shapes: Sequence[Shape], backend: str, cuda_graph: bool = False) -> Tensor:
    """Return all parameters after five steps on random gradients with a decaying rate."""
    parameters = _parameters(machine, shapes)
    groups: list[dict[str, Any]] = [{"params": parameters[:-1]}, {"params": parameters[-1:], "algorithm": "adamw"}]
    optimizer = Muon(groups, 0.02, weight_decay=0.1, nesterov=True, backend=backend, cuda_graph=cuda_graph)
    generator = torch.Generator(machine.device).manual_seed(2)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    for step in range(5):
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.normal_(generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 0.02 / (step + 1)
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])
