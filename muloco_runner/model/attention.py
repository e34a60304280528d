"""Attention that is causal within a document, by torch's fused kernels: SDPA everywhere, FlexAttention on GPUs.

SDPA takes the mask as a tensor of T x T a sequence and computes all of it; FlexAttention knows which blocks of the mask
are empty and skips them, and compiles the mask into its kernel.

Axes: B batch, T time, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from muloco_runner.config import ConfigError
from muloco_runner.model.compile import compile_each_shape
from muloco_runner.model.key_value_cache import KeyValueCache

Mask = Tensor | BlockMask | KeyValueCache | None
_SMALLEST_FLEX_HEAD = 16


def choose_attention(name: str, head_width: int, device: torch.device) -> str:
    """The kernel of that name, or for "auto" the fastest that `device` has for heads of this width."""
    flex_fits = device.type == "cuda" and head_width >= _SMALLEST_FLEX_HEAD
    if name == "auto":
        return "flex" if flex_fits else "sdpa"
    if name == "flex" and not flex_fits:
        raise ConfigError(
            f"execution.attention=flex needs a GPU and a head width of {_SMALLEST_FLEX_HEAD} or more, given are "
            f"{device.type} and {head_width}: use sdpa or auto"
        )
    return name


def block_causal_mask(documents_BT: Tensor) -> Tensor:
    """True where a position may attend: not ahead, and not to another document. Shape (B, 1, T, T)."""
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT.tril_()[:, None]


def make_mask(documents_BT: Tensor | None, kind: str, dtype: torch.dtype) -> Mask:
    """The mask that `attend` takes for queries of `dtype`; None, plain causal attention, without documents."""
    if documents_BT is None:
        return None
    if kind == "sdpa":
        # Added to the scores. From booleans every layer would make, and keep, such a tensor of its own.
        hidden_B1TT = block_causal_mask(documents_BT).logical_not_()
        return torch.zeros_like(hidden_B1TT, dtype=dtype).masked_fill_(hidden_B1TT, -torch.inf)

    def may_attend(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents_BT[batch, query] == documents_BT[batch, key])

    batch, length = documents_BT.shape
    mask: BlockMask = _compiled_on_gpus(create_block_mask, documents_BT.device.type)(
        may_attend, batch, None, length, length, device=documents_BT.device
    )
    return mask


def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask: Mask) -> Tensor:
    """Scaled dot-product attention under a mask of `make_mask`, or over all that a cache holds."""
    if isinstance(mask, KeyValueCache):
        k_BHTK, v_BHTK = mask.extended_by(k_BHTK, v_BHTK)
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=mask.mask_B1QT)
    if isinstance(mask, BlockMask):
        # In a compiled block it becomes a part of that block's graph.
        flex: Callable[..., Any] = flex_attention
        if not torch.compiler.is_compiling():
            flex = _compiled_on_gpus(flex_attention, q_BHTK.device.type)
        y_BHTK: Tensor = flex(q_BHTK, k_BHTK, v_BHTK, block_mask=mask)
        return y_BHTK
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=mask, is_causal=mask is None)


@cache
def _compiled_on_gpus(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    # Uncompiled, both materialise T x T: right for a check on a CPU, useless on a GPU.
    return compile_each_shape(function) if device_type == "cuda" else function
