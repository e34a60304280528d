"""A device's peak arithmetic, how much of it a run uses (model FLOPs utilisation, MFU), and its peak memory."""

from __future__ import annotations

import re
import resource
import sys
from typing import Any

import torch

from muloco_runner.config import RunConfig

# Dense peaks from the vendor's data sheets, FLOP/s: bfloat16 on tensor cores, float32 outside of them. The first name
# found in the device's own name counts, so the longer names come first.
_PEAKS: tuple[tuple[str, float, float], ...] = (
    ("GB200", 2.5e15, 80e12),
    ("B200", 2.25e15, 75e12),
    ("GH200", 989.4e12, 66.9e12),
    ("H200 NVL", 835e12, 60e12),
    ("H200", 989.4e12, 66.9e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100 PCIe", 756e12, 51.2e12),
    ("H100", 989.4e12, 66.9e12),
    ("H800", 989.4e12, 66.9e12),
    ("A100", 311.9e12, 19.5e12),
    ("A800", 311.9e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("L40", 181e12, 90.5e12),
    ("L4", 121e12, 30.3e12),
    ("A10G", 70e12, 31.2e12),
    ("A10", 125e12, 31.2e12),
    ("RTX 4090", 165.2e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
)


def peak_flops_by_name(name: str, precision: str, allow_tf32: bool = False) -> float | None:
    """FLOP/s of the device called `name` at `precision` (float32 or bfloat16), or None where it is not known."""
    for known, bfloat16, float32 in _PEAKS:
        if re.search(rf"\b{known}\b", name):
            if precision == "bfloat16":
                return bfloat16
            return bfloat16 / 2 if allow_tf32 else float32
    return None


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s of `device` at `precision`, or None for CPUs, whose peak depends on clocks that nobody fixes."""
    if device.type != "cuda":
        return None
    allow_tf32 = torch.get_float32_matmul_precision() != "highest"
    return peak_flops_by_name(torch.cuda.get_device_name(device), precision, allow_tf32)


def utilisations(
    run: RunConfig, tokens_per_second: float | None, device: torch.device, num_devices: int
) -> dict[str, Any]:
    """Model FLOPs utilisation in two views, over the peak of all devices: `mfu` counts the model's flops of a token,
    6N, `hardware_mfu` those that devices compute. Empty where speed or peak are not known."""
    peak = peak_flops(device, run.precision)
    if peak is None or tokens_per_second is None:
        return {}
    return utilisations_at(run, tokens_per_second, peak * num_devices)


def utilisations_at(run: RunConfig, tokens_per_second: float, peak: float) -> dict[str, float]:
    """As `utilisations`, of a peak in FLOP/s."""
    per_token = {"mfu": run.model.flops_per_token, "hardware_mfu": run.model.hardware_flops_per_token}
    return {name: flops * tokens_per_second / peak for name, flops in per_token.items()}


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has used so far: device memory on a GPU, resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
