"""The head's product and the cross-entropy as one function, in chunks of tokens: the full logits never exist.

At a vocabulary of 128,256 the float32 logits of 16k tokens are 8.4 GB, and their gradient as much again. Here a chunk's
logits become its share of both gradients at once, in the forward pass, and are dropped; the backward pass only scales.

Axes: N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from muloco_runner.model.logit_chunks import chunk_tokens

LossAndGradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps logits (N, V) and targets (N, 1) to the summed loss, float32, and its gradient by the logits, in their dtype."""


def loss_and_gradient(logits_NV: Tensor, targets_N1: Tensor) -> tuple[Tensor, Tensor]:
    """A `LossAndGradient` for running operation by operation: in place where it can be."""
    dtype, logits32_NV = logits_NV.dtype, logits_NV.float()
    del logits_NV  # the caller keeps none either: three of that size at once would be the peak of a step
    log_probabilities_NV = logits32_NV.log_softmax(dim=-1)
    del logits32_NV
    loss = -log_probabilities_NV.gather(1, targets_N1).sum()
    # d(-log p_t) / d logits = p - onehot(t)
    minus_one = torch.full_like(targets_N1, -1, dtype=loss.dtype)
    return loss, log_probabilities_NV.exp_().scatter_add_(1, targets_N1, minus_one).to(dtype)


def fusible_loss_and_gradient(logits_NV: Tensor, targets_N1: Tensor) -> tuple[Tensor, Tensor]:
    """A `LossAndGradient` for the compiler, which makes two passes of it: one for maximum and sum together, since it
    knows this form (not `logsumexp`, of which it makes two), and one for the gradient, where nothing is scattered."""
    logits32_NV = logits_NV.float()
    most_N1 = logits32_NV.amax(dim=-1, keepdim=True)
    exponentials_NV = (logits32_NV - most_N1).exp()
    sum_N1 = exponentials_NV.sum(dim=-1, keepdim=True)
    loss = (sum_N1.log() + most_N1 - logits32_NV.gather(1, targets_N1)).sum()
    hit_NV = torch.arange(logits_NV.shape[1], device=logits_NV.device) == targets_N1
    return loss, (exponentials_NV / sum_N1 - hit_NV.float()).to(logits_NV.dtype)


def linear_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    chunk: int | None = None,
    differentiate: LossAndGradient = loss_and_gradient,
) -> Tensor:
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
        loss: Tensor = _LinearCrossEntropy.apply(x_ND, weight_VD, targets_N, dtype, chunk, differentiate)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        dtype: torch.dtype,
        chunk: int,
        differentiate: LossAndGradient,
    ) -> Tensor:
        x, weight = x_ND.to(dtype), weight_VD.to(dtype)
        need_x, need_weight = ctx.needs_input_grad[:2]
        x_grad = torch.empty_like(x) if need_x else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        for start in range(0, len(x), chunk):
            rows = slice(start, start + chunk)
            if not (need_x or need_weight):
                total += F.cross_entropy((x[rows] @ weight.T).float(), targets_N[rows], reduction="sum")
                continue
            loss, logits_grad_NV = differentiate(x[rows] @ weight.T, targets_N[rows, None])
            total += loss
            if x_grad is not None:
                torch.mm(logits_grad_NV, weight, out=x_grad[rows])
            if weight_grad is not None:
                _add_product(weight_grad, logits_grad_NV.T, x[rows])
        # Kept as attributes, not as saved tensors: the backward pass owns them and scales them in place.
        ctx.gradients, ctx.dtypes = (x_grad, weight_grad), (x_ND.dtype, weight_VD.dtype)
        ctx.num_tokens = len(x)
        return total / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the gradient of linear_cross_entropy can be computed once: it is handed over, not kept")
        scale = loss_grad / ctx.num_tokens
        x_grad, weight_grad = (
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        )
        ctx.gradients = None
        return x_grad, weight_grad, None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left right, where the sum may have a higher precision than the factors: then within the product, if
    torch can, which spares a rounded result and three passes over memory."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif adds_within_product(total.device, left.dtype):
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right


@cache
def adds_within_product(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch adds products of `dtype` to a float32 sum on `device` without rounding them first, found by trying:
    on NVIDIA's GPUs, in some releases with a sum of `dtype` alone."""
    # Half precision would lose the small term within the product, and the sum before it beside the product.
    small, before = 2.0**-9, 2.0**-12
    left, right = torch.ones(2, 16, 16, dtype=dtype, device=device)
    left[:, 0] = small
    total = torch.full((16, 16), before, device=device)
    try:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 15 + small + before).all())
