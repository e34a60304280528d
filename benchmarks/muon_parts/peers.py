"""Muon steps to compare: ours, the usual loop, torch's, and what packages offer where they are installed: as their
authors ship them (`pip install --no-deps` of their wheels, on a machine that reaches no registry).

All use Keller Jordan's coefficients in five steps, momentum as a moving average with Nesterov, the learning rate scaled
by sqrt(max(1, rows/columns)), and no decay.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muloco_runner.optimizers import Muon

A, B, C = 3.4445, -4.7750, 2.0315
LR, MOMENTUM = 0.02, 0.95
Step = Callable[[], Any]
MakeStep = Callable[[list[nn.Parameter]], Step]


class Absent(Exception):
    """Why a peer does not run here."""


def lr_scale(parameter: Tensor) -> float:
    return max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5


def usual_loop(parameters: list[nn.Parameter]) -> Step:
    """Keller Jordan's optimizer as published: one matrix at a time, in bfloat16."""
    momenta = [torch.zeros_like(parameter) for parameter in parameters]

    def orthogonalize(g: Tensor) -> Tensor:
        x = g.bfloat16()
        tall = x.size(-2) > x.size(-1)
        x = x.mT if tall else x
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(5):
            gram = x @ x.mT
            x = A * x + (B * gram + C * gram @ gram) @ x
        return x.mT if tall else x

    @torch.no_grad()
    def step() -> None:
        for parameter, momentum in zip(parameters, momenta, strict=True):
            assert parameter.grad is not None
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            update = parameter.grad.lerp(momentum, MOMENTUM)
            parameter.add_(orthogonalize(update), alpha=-LR * lr_scale(parameter))

    return step


def torchs_own(parameters: list[nn.Parameter]) -> Step:
    return torch.optim.Muon(parameters, lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=0.0).step


def ours(**changes: Any) -> MakeStep:
    """`Muon` of this project, with further keywords."""

    def make(parameters: list[nn.Parameter]) -> Step:
        return Muon(
            parameters,
            LR,
            momentum=MOMENTUM,
            momentum_form="ema",
            nesterov=True,
            lr_scale="keller_jordan",
            coefficients="keller_jordan",
            **changes,
        ).step

    return make


def ours_without_gram_form(parameters: list[nn.Parameter]) -> Step:
    from muloco_runner.optimizers.orthogonalize.triton import workspace

    aspect, workspace.GRAM_ASPECT = workspace.GRAM_ASPECT, float("inf")
    try:
        return ours()(parameters)
    finally:
        workspace.GRAM_ASPECT = aspect


def batched(orthogonalize: Callable[[Tensor], Tensor]) -> MakeStep:
    """A step around somebody's orthogonalisation of a batch of equal shapes: foreach for all that is elementwise."""

    def make(parameters: list[nn.Parameter]) -> Step:
        buckets: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            buckets.setdefault(parameter.shape, []).append(parameter)
        momenta = {shape: [torch.zeros_like(p) for p in bucket] for shape, bucket in buckets.items()}

        @torch.no_grad()
        def step() -> None:
            for shape, bucket in buckets.items():
                gradients = [p.grad for p in bucket]
                torch._foreach_lerp_(momenta[shape], gradients, 1 - MOMENTUM)
                updates = torch._foreach_lerp(gradients, momenta[shape], MOMENTUM)
                out = orthogonalize(torch.stack(updates))
                torch._foreach_add_(bucket, [o.float() for o in out.unbind()], alpha=-LR * lr_scale(bucket[0]))

        return step

    return make


def cublas(parameters: list[nn.Parameter]) -> Step:
    """The polynomial by batched library products in float16, the whole step replayed as a CUDA graph."""

    def orthogonalize(x: Tensor) -> Tensor:
        tall = x.size(-2) > x.size(-1)
        x = x.mT if tall else x
        x = (x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-12)).half()
        for _ in range(5):
            gram = torch.bmm(x, x.mT)
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
        return x.mT if tall else x

    step = batched(orthogonalize)(parameters)
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def gram_newton_schulz(parameters: list[nn.Parameter]) -> Step:
    """Dao-AILab's, with its kernels and compiled as it ships: with CUDA graphs."""
    _for_gpus(parameters)
    package = _import("gram_newton_schulz")
    return batched(package.GramNewtonSchulz(ns_coefficients=[[A, B, C]] * 5))(parameters)


def emerging_optimizers(*, symmetric: bool) -> MakeStep:
    """NVIDIA's, in bfloat16, which it takes where torch multiplies float32 at "medium"; `symmetric`: its own kernel."""

    def make(parameters: list[nn.Parameter]) -> Step:
        if symmetric:
            _for_gpus(parameters)
        utils = _import("emerging_optimizers.orthogonalized_optimizers.muon_utils")

        def orthogonalize(x: Tensor) -> Tensor:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("medium")
            try:
                return torch.stack([one(matrix) for matrix in x])
            finally:
                torch.set_float32_matmul_precision(before)

        def one(matrix: Tensor) -> Tensor:
            out: Tensor = utils.newton_schulz(
                matrix, 5, "custom", custom_coefficient_sets=[(A, B, C)] * 5, use_syrk=symmetric
            )
            return out

        return batched(orthogonalize)(parameters)

    return make


def dions_kernels(parameters: list[nn.Parameter]) -> Step:
    """Microsoft's Triton kernels, which tune themselves at the first call, in batches and bfloat16."""
    _for_gpus(parameters)
    kernels = _import("dion.newton_schulz_triton")

    def orthogonalize(x: Tensor) -> Tensor:
        tall = x.size(-2) > x.size(-1)
        x = (x.mT if tall else x).bfloat16().contiguous()
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(5):
            polynomial = kernels.ns_line_2(kernels.ns_line_1(x), alpha=C, beta=B)
            x = kernels.ns_line_3(polynomial, x, A)
        return x.mT if tall else x

    return batched(orthogonalize)(parameters)


def flash_muon(parameters: list[nn.Parameter]) -> Step:
    """Its Triton product of a matrix and its transpose, one matrix at a time."""
    _for_gpus(parameters)
    muon = _import("flash_muon.muon")
    return batched(lambda x: torch.stack([muon.fast_newtonschulz(matrix, 5) for matrix in x]))(parameters)


def _for_gpus(parameters: list[nn.Parameter]) -> None:
    if parameters[0].device.type != "cuda":
        raise Absent("for GPUs only")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise Absent(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def peers(device: torch.device) -> dict[str, MakeStep]:
    """The peers by name, the usual loop first and ours last."""
    common: dict[str, MakeStep] = {
        "Keller Jordan's loop": usual_loop,
        "torch.optim.Muon": torchs_own,
        "gram-newton-schulz": gram_newton_schulz,
        "emerging-optimizers": emerging_optimizers(symmetric=False),
        "emerging-optimizers, symmetric": emerging_optimizers(symmetric=True),
        "dion's kernels": dions_kernels,
        "flash-muon": flash_muon,
    }
    if device.type == "cpu":
        return {**common, "ours": ours()}
    return {
        **common,
        "batched cuBLAS, graph": cublas,
        "ours, without Gram form": ours_without_gram_form,
        "ours": ours(),
        "ours, graph": ours(cuda_graph=True),
    }


def exact(gradient: Tensor) -> Tensor:
    """The orthogonalised gradient in float64: the polynomial on one matrix."""
    x = gradient.double()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.mT if tall else x


@torch.no_grad()
def relative_error(before: Sequence[Tensor], parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> float:
    """Error of the first step's moves, over one matrix of each shape: distance to the polynomial in float64."""
    wrong = total = 0.0
    for start, parameter, gradient in zip(before, parameters, gradients, strict=True):
        moved = (start.double() - parameter.double()) / (LR * lr_scale(parameter))
        expected = exact(gradient)
        wrong += float((moved - expected).square().sum())
        total += float(expected.square().sum())
    return (wrong / total) ** 0.5
