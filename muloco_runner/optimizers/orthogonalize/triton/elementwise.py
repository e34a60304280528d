"""The elementwise parts of a step, each kernel one pass over memory.

Muon's prologue has two stages: `accumulate_momentum` updates the momentum and leaves sums of squares, one a strip;
`normalise` adds those up and writes the normalised update in half precision. Strips and the order of their sums are
fixed, so a result repeats to the bit. Matrices are given by their addresses: they may lie anywhere.
"""

# Arguments of a kernel are typed by Triton.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from muloco_runner.optimizers.orthogonalize.triton.hyper import (
    BETA1,
    BETA2,
    CLIP,
    EPS,
    GRADIENT_WEIGHT,
    LR,
    MOMENTUM,
    WEIGHT_DECAY,
)


@triton.jit
def pointer_to(addresses, index, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(addresses + index).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def kept_and_scale(hyper, shape_scale):
    """Factors of W <- kept W - scale O, float32."""
    lr = tl.load(hyper + LR)
    return (1 - lr * tl.load(hyper + WEIGHT_DECAY)).to(tl.float32), (lr * shape_scale).to(tl.float32)


@triton.jit
def decayed(weights, update, kept, CAUTIOUS: tl.constexpr):
    """kept W; CAUTIOUS: only where W has the sign of the update, or one of both is 0 (`update_rule.decay_`)."""
    if CAUTIOUS:
        return weights * tl.where(update * weights >= 0, kept, 1.0)
    else:
        return kept * weights


@triton.jit
def accumulate_momentum(
    gradients, momentum, squares, hyper, numel, strip,
    GRADIENT: tl.constexpr, NESTEROV: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """M <- mu M + weight clip G; squares[batch, strip] = sum of squares of the update. Grid (strips, batch).

    Without `momentum` (None) the update is G itself. A matrix without a gradient (address 0) stays as it is. Squares
    are summed in float64: in float32 they overflow above 1e19 and vanish below 1e-22.
    """
    index, batch = tl.program_id(0), tl.program_id(1)
    if tl.load(gradients + batch) == 0:
        return
    gradient = pointer_to(gradients, batch, GRADIENT, ALIGNED)
    if momentum is not None:
        momentum += batch.to(tl.int64) * numel
        mu = tl.load(hyper + MOMENTUM).to(tl.float32)
        weight = (tl.load(hyper + GRADIENT_WEIGHT) * tl.load(hyper + CLIP)).to(tl.float32)
    sums = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(index * strip, min((index + 1) * strip, numel), BLOCK):
        offset = start + tl.arange(0, BLOCK)
        inside = offset < numel
        update = tl.load(gradient + offset, mask=inside, other=0.0).to(tl.float32)
        if momentum is not None:
            fresh = weight * update
            update = mu * tl.load(momentum + offset, mask=inside, other=0.0) + fresh
            tl.store(momentum + offset, update, mask=inside)
            if NESTEROV:
                update = mu * update + fresh
        wide = update.to(tl.float64)
        sums += wide * wide
    tl.store(squares + batch * tl.num_programs(0) + index, tl.sum(sums, axis=0))


@triton.jit
def normalise(
    gradients, momentum, squares, out, hyper, numel, strip, columns, row_stride, matrix_stride,
    margin, epsilon, norm_floor,
    GRADIENT: tl.constexpr, NESTEROV: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr,
    STRIPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = update / (its Frobenius norm times `margin`, plus `epsilon`; at least `norm_floor`), in DTYPE.

    Grid (STRIPS, batch), as the stage before.
    """
    index, batch = tl.program_id(0), tl.program_id(1)
    if tl.load(gradients + batch) == 0:
        return
    gradient = pointer_to(gradients, batch, GRADIENT, ALIGNED)
    norm = tl.sqrt(tl.sum(tl.load(squares + batch * STRIPS + tl.arange(0, STRIPS)), axis=0)) * margin + epsilon
    # A comparison that a norm that is not a number fails: it stays.
    inverse = 1.0 / tl.where(norm < norm_floor, norm_floor, norm)
    if momentum is not None:
        momentum += batch.to(tl.int64) * numel
        mu = tl.load(hyper + MOMENTUM).to(tl.float32)
        weight = (tl.load(hyper + GRADIENT_WEIGHT) * tl.load(hyper + CLIP)).to(tl.float32)
    out += batch.to(tl.int64) * matrix_stride
    for start in range(index * strip, min((index + 1) * strip, numel), BLOCK):
        offset = start + tl.arange(0, BLOCK)
        inside = offset < numel
        if momentum is None:
            update = tl.load(gradient + offset, mask=inside, other=0.0).to(tl.float32)
        else:
            update = tl.load(momentum + offset, mask=inside, other=0.0)
            if NESTEROV:
                update = mu * update + weight * tl.load(gradient + offset, mask=inside, other=0.0).to(tl.float32)
        x = (update.to(tl.float64) * inverse).to(tl.float32).to(DTYPE)
        if columns == row_stride:
            tl.store(out + offset, x, mask=inside)
        else:
            tl.store(out + (offset // columns).to(tl.int64) * row_stride + offset % columns, x, mask=inside)


@triton.jit
def update_parameters(
    orthogonal, parameters, kept, scale, numel,
    DTYPE: tl.constexpr, PARAMETER: tl.constexpr, ALIGNED: tl.constexpr, CAUTIOUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """W <- kept W - scale O, for orthogonalised matrices that came from elsewhere. Grid (blocks, batch). CAUTIOUS: see
    `decayed`."""
    batch = tl.program_id(1)
    weights = pointer_to(parameters, batch, PARAMETER, ALIGNED)
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < numel
    o = tl.load(pointer_to(orthogonal, batch, DTYPE, ALIGNED) + offset, mask=inside).to(tl.float32)
    w = tl.load(weights + offset, mask=inside).to(tl.float32)
    tl.store(weights + offset, (decayed(w, o, kept, CAUTIOUS) - scale * o).to(PARAMETER), mask=inside)


@triton.jit
def adamw(
    parameters, gradients, first_moments, second_moments, first_corrections, second_corrections, sizes,
    tensor_of_block, block_in_tensor, hyper,
    PARAMETER: tl.constexpr, GRADIENT: tl.constexpr, ALIGNED: tl.constexpr, DIVISIBLE: tl.constexpr,
    CAUTIOUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One AdamW step on all tensors of a group, as torch's. Grid (blocks of all tensors).

    A correction is 1 - beta^step, float64, one a tensor. DIVISIBLE promises sizes that are multiples of 16. A tensor
    without a gradient (address 0) stays as it is. CAUTIOUS: see `decayed`.
    """
    block = tl.program_id(0)
    tensor = tl.load(tensor_of_block + block)
    if tl.load(gradients + tensor) == 0:
        return
    weights = pointer_to(parameters, tensor, PARAMETER, ALIGNED)
    gradient = pointer_to(gradients, tensor, GRADIENT, ALIGNED)
    first = pointer_to(first_moments, tensor, tl.float32, ALIGNED)
    second = pointer_to(second_moments, tensor, tl.float32, ALIGNED)
    first_weight = (1 - tl.load(hyper + BETA1)).to(tl.float32)
    second_weight = (1 - tl.load(hyper + BETA2)).to(tl.float32)
    eps, clip = tl.load(hyper + EPS).to(tl.float32), tl.load(hyper + CLIP).to(tl.float32)
    kept, _ = kept_and_scale(hyper, 1.0)
    scale = (tl.load(hyper + LR) / tl.load(first_corrections + tensor)).to(tl.float32)
    correction = tl.sqrt(tl.load(second_corrections + tensor)).to(tl.float32)
    offset = tl.load(block_in_tensor + block).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = tl.load(sizes + tensor)
    if DIVISIBLE:
        size = tl.multiple_of(size, 16)
    inside = offset < size
    g = tl.load(gradient + offset, mask=inside, other=0.0).to(tl.float32) * clip
    m = tl.load(first + offset, mask=inside, other=0.0)
    v = tl.load(second + offset, mask=inside, other=0.0)
    w = tl.load(weights + offset, mask=inside, other=0.0).to(tl.float32)
    m += (g - m) * first_weight
    v += (g * g - v) * second_weight
    w = decayed(w, m, kept, CAUTIOUS) - scale * m / (tl.sqrt(v) / correction + eps)
    tl.store(first + offset, m, mask=inside)
    tl.store(second + offset, v, mask=inside)
    tl.store(weights + offset, w.to(PARAMETER), mask=inside)
