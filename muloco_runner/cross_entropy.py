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

from muloco_runner.memory import chunk_tokens


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
            total += _chunk_loss(
                x[here], weight, targets_N[here, None], None if x_grad is None else x_grad[here], weight_grad
            )
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


def _chunk_loss(
    x_ND: Tensor, weight_VD: Tensor, targets_N1: Tensor, x_grad_ND: Tensor | None, weight_grad_VD: Tensor | None
) -> Tensor:
    """Summed loss of one chunk; writes its gradient of x, adds its gradient of the weight, where they are asked for."""
    log_probabilities_NV = (x_ND @ weight_VD.T).float().log_softmax(dim=-1)
    loss = -log_probabilities_NV.gather(1, targets_N1).sum()
    if x_grad_ND is None and weight_grad_VD is None:
        return loss
    # d(-log p_t) / d logits = p - onehot(t)
    minus_one = torch.full_like(targets_N1, -1, dtype=loss.dtype)
    logits_grad_NV = log_probabilities_NV.exp_().scatter_add_(1, targets_N1, minus_one).to(x_ND.dtype)
    if x_grad_ND is not None:
        torch.mm(logits_grad_NV, weight_VD, out=x_grad_ND)
    if weight_grad_VD is not None:
        if x_ND.dtype == weight_grad_VD.dtype:
            weight_grad_VD.addmm_(logits_grad_NV.T, x_ND)
        else:
            weight_grad_VD += logits_grad_NV.T @ x_ND
    return loss
