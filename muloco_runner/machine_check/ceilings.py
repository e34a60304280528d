"""What the device reaches at best: copies and products of the sizes that training has."""

from __future__ import annotations

import torch

from muloco_runner.machine_check.findings import Findings
from muloco_runner.machine_check.timing import Machine
from muloco_runner.training.mfu import peak_flops

_LEAST_SHARE = 0.55
"""Of the data sheet's peak, in a large product: below it a GPU is throttled, shared or ill."""


def check(machine: Machine, findings: Findings) -> None:
    """Measure a copy, and batched half-precision products by width."""
    device = machine.device
    findings.add("copy", _copy_terabytes_per_second(machine), "TB/s")
    dtype = torch.float16 if machine.is_gpu else torch.float32
    for width in (512, 1024, 2048, 8192) if machine.is_gpu else (64, 128):
        batch = max(1, 2**13 // width) if machine.is_gpu else 2
        left, right = (torch.randn(batch, width, width, device=device, dtype=dtype) for _ in range(2))
        product_ms = machine.milliseconds(lambda a=left, b=right: a @ b)  # type: ignore[misc]
        reached = 2 * batch * width**3 / product_ms / 1e9
        findings.add(f"products of {batch} x {width} x {width}", reached, "TFLOP/s")
    peak = peak_flops(device, "bfloat16")
    if peak is not None:
        findings.hoped("share of the data sheet's peak", reached * 1e12 / peak, _LEAST_SHARE)
    elif machine.is_gpu:
        findings.add("data sheet's peak", "not known here, so that there is no MFU", verdict="absent")


def _copy_terabytes_per_second(machine: Machine) -> float:
    """Read and written; 4 GiB on a GPU, which no cache holds."""
    source = torch.randn(2**30 if machine.is_gpu else 2**22, device=machine.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / machine.milliseconds(lambda: target.copy_(source)) / 1e9
