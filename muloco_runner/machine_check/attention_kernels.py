"""FlexAttention against SDPA under a document mask: the same numbers, and both times."""

from __future__ import annotations

import time

import torch

from muloco_runner.machine_check.findings import Findings
from muloco_runner.machine_check.timing import Machine
from muloco_runner.model.attention import Mask, attend, make_mask

_DOCUMENT_TOKENS = 100
"""Tokens of a document, on average: some twenty begin in a sequence, as in web text."""
_MOST_DIFFERENCE = 2e-2
"""Relative, in bfloat16."""
_RESULTS = ("attention", "gradient of queries", "gradient of keys", "gradient of values")


def check(machine: Machine, findings: Findings) -> None:
    """Compare what comes out and the gradients of queries, keys and values; time both passes."""
    device = machine.device
    batch, heads, length, width = (4, 8, 2048, 128) if machine.is_gpu else (2, 2, 128, 16)
    generator = torch.Generator(device).manual_seed(0)
    begins = torch.rand(batch, length, device=device, generator=generator) < 1 / _DOCUMENT_TOKENS
    documents = begins.cumsum(1)
    size = (batch, heads, length, width)
    q, k, v, gradient = (torch.randn(size, device=device, dtype=torch.bfloat16, generator=generator) for _ in range(4))
    # torch's FlexAttention has no backward pass on CPUs.
    has_backward = machine.is_gpu
    for tensor in (q, k, v):
        tensor.requires_grad_(has_backward)
    results = {}
    for kind in ("sdpa", "flex"):
        began = time.perf_counter()
        mask = make_mask(documents, kind, torch.bfloat16)

        def passes(mask: Mask = mask) -> tuple[torch.Tensor, ...]:
            attended = attend(q, k, v, mask)
            return (attended, *torch.autograd.grad(attended, (q, k, v), gradient)) if has_backward else (attended,)

        results[kind] = [tensor.detach().double() for tensor in passes()]
        machine.wait()
        findings.add(f"{kind}, first call", time.perf_counter() - began, "s")
        findings.add(
            f"{kind}, {'forward and backward' if has_backward else 'forward'}", machine.milliseconds(passes), "ms"
        )
        making = machine.milliseconds(lambda kind=kind: make_mask(documents, kind, torch.bfloat16))  # type: ignore[misc]
        findings.add(f"{kind}, mask", making, "ms")
    for name, one, other in zip(_RESULTS, results["sdpa"], results["flex"], strict=False):
        findings.at_most(f"flex against sdpa, {name}", float((one - other).norm() / one.norm()), _MOST_DIFFERENCE)
