"""The head's product and the cross-entropy as one function, in chunks of tokens: the logits never exist as a whole.

At a vocabulary of 128,256 the float32 logits of 16k tokens are 8.4 GB, and their gradient as much again. Here a chunk's
logits become its share of both gradients at once, in the forward pass, and are dropped; the backward pass only scales.

Axes: N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}
"""Logits held at once. On a GPU the weight's gradient, which each chunk reads and writes, asks for large chunks."""


def chunk_tokens(vocab_size: int, device_type: str) -> int:
    """Tokens whose logits are held at once."""
    return max(1, _CHUNK_LOGITS.get(device_type, _CHUNK_LOGITS["cuda"]) // vocab_size)


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int | None = None) -> Tensor:
    """Mean over N of -log softmax(x W^T)[target], in nats; a float32 scalar.

    The products are computed in the dtype of autocast where it is on, sums and softmax in float32. What fits in one
    chunk is left to torch's own two operations.
    """
    device = x_ND.device.type
    chunk = chunk or chunk_tokens(len(weight_VD), device)
    if len(x_ND) <= chunk:
        return F.cross_entropy(F.linear(x_ND, weight_VD).float(), targets_N)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype
    with torch.autocast(device, enabled=False):
        loss: Tensor = _LinearCrossEntropy.apply(x_ND, weight_VD, targets_N, dtype, chunk)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype, chunk: int) -> Tensor:
        x, weight = x_ND.to(dtype), weight_VD.to(dtype)
        need_x, need_weight = ctx.needs_input_grad[:2]
        x_grad = torch.empty_like(x) if need_x else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        for start in range(0, len(x), chunk):
            here = slice(start, start + chunk)
            targets = targets_N[here, None]
            log_probabilities = (x[here] @ weight.T).float().log_softmax(dim=-1)
            total -= log_probabilities.gather(1, targets).sum()
            if not (need_x or need_weight):
                continue
            # d(-log p_t) / d logits = p - onehot(t)
            logits_grad = log_probabilities.exp_().scatter_add_(
                1, targets, -torch.ones_like(targets, dtype=total.dtype)
            )
            logits_grad = logits_grad.to(dtype)
            if x_grad is not None:
                torch.mm(logits_grad, weight, out=x_grad[here])
            if weight_grad is not None:
                if dtype == torch.float32:
                    weight_grad.addmm_(logits_grad.T, x[here])
                else:
                    weight_grad += logits_grad.T @ x[here]
        # Kept as attributes, not as saved tensors: the backward pass takes them over and scales them in place.
        ctx.gradients, ctx.dtypes = (x_grad, weight_grad), (x_ND.dtype, weight_VD.dtype)
        ctx.num_tokens = len(x)
        return total / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the gradient of linear_cross_entropy can be taken once: it is handed over, not kept")
        scale = loss_grad / ctx.num_tokens
        x_grad, weight_grad = (
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        )
        ctx.gradients = None
        return x_grad, weight_grad, None, None, None
