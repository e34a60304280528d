"""The study's decoder-only transformer (arXiv 2505.23725): SwiGLU, rotary positions after QK-norm, RMSNorm before and
after each branch, untied embedding and head, no biases; attention is causal within a document.

Axes: B batch, T time, D model width, H heads, K head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from muloco_runner.config import AnyModelConfig, ModelConfig
from muloco_runner.model.attention import Mask, attend, make_mask
from muloco_runner.model.compile import compile_each_shape
from muloco_runner.model.cross_entropy import (
    LossAndGradient,
    fusible_loss_and_gradient,
    linear_cross_entropy,
    loss_and_gradient,
)
from muloco_runner.model.language_model import LanguageModel
from muloco_runner.model.logit_chunks import chunk_within

MATRIX_STD = 0.02


class RMSNorm(nn.Module):
    """x / rms(x) * gain over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # GPUs' autocast would return float32, which the residual stream, queries and keys would become, but not values.
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, self.gain.shape, self.gain.to(x.dtype), self.eps)


def rotary_angles(length: int, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's rotation, each of shape (T, K/2), float32 (RoFormer, arXiv 2104.09864)."""
    frequencies = theta ** -(torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotates each pair (x_i, x_{i+K/2}) by its position's angle."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.cat((first * cos_TK - second * sin_TK, second * cos_TK + first * sin_TK), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.head_width = config.width, config.head_width
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, width, bias=False)
        self.wv = nn.Linear(width, width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        # One gain over the head width, shared by all heads.
        self.q_norm = RMSNorm(config.head_width, config.norm_eps)
        self.k_norm = RMSNorm(config.head_width, config.norm_eps)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor, mask: Mask) -> Tensor:
        batch, length, width = x_BTD.shape
        heads = (batch, length, -1, self.head_width)
        q_BHTK = rotate(self.q_norm(self.wq(x_BTD).view(heads)).transpose(1, 2), cos_TK, sin_TK)
        k_BHTK = rotate(self.k_norm(self.wk(x_BTD).view(heads)).transpose(1, 2), cos_TK, sin_TK)
        v_BHTK = self.wv(x_BTD).view(heads).transpose(1, 2)
        y_BHTK = attend(q_BHTK, k_BHTK, v_BHTK, mask)
        y_BTD: Tensor = self.wo(y_BHTK.transpose(1, 2).reshape(batch, length, width))
        return y_BTD


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.ffn_width, bias=False)
        self.w2 = nn.Linear(config.ffn_width, config.width, bias=False)
        self.w3 = nn.Linear(config.width, config.ffn_width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.w2(F.silu(self.w1(x_BTD)) * self.w3(x_BTD))
        return y_BTD


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_pre_norm = RMSNorm(config.width, config.norm_eps)
        self.attention_post_norm = RMSNorm(config.width, config.norm_eps)
        self.feed_forward_pre_norm = RMSNorm(config.width, config.norm_eps)
        self.feed_forward_post_norm = RMSNorm(config.width, config.norm_eps)
        self.recompute = False
        """Whether the backward pass computes the activations again instead of finding them kept."""
        self.branches: Callable[..., Tensor] = self.add_branches

    def add_branches(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor, mask: Mask) -> Tensor:
        attended = self.attention(self.attention_pre_norm(x_BTD), cos_TK, sin_TK, mask)
        x_BTD = x_BTD + self.attention_post_norm(attended)
        transformed: Tensor = self.feed_forward_post_norm(self.feed_forward(self.feed_forward_pre_norm(x_BTD)))
        return x_BTD + transformed

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor, mask: Mask) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            y_BTD: Tensor = checkpoint(
                self.branches, x_BTD, cos_TK, sin_TK, mask, use_reentrant=False, preserve_rng_state=False
            )
            return y_BTD
        return self.branches(x_BTD, cos_TK, sin_TK, mask)


class Head(nn.Linear):
    """Hidden states (B, T, D) to logits (B, T, V), or to their mean cross-entropy where targets (B, T) are given."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.width, config.vocab_size, bias=False)
        self.differentiate: LossAndGradient = loss_and_gradient
        self.most_chunk = 0

    def forward(self, x_BTD: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        if targets_BT is None:
            return super().forward(x_BTD)
        targets_N = targets_BT.flatten()
        chunk = chunk_within(len(targets_N), len(self.weight), x_BTD.device.type, self.most_chunk)
        return linear_cross_entropy(x_BTD.flatten(0, 1), self.weight, targets_N, chunk, self.differentiate)


class Transformer(LanguageModel):
    """Token ids (B, T) and document ids (B, T) to logits (B, T, V), or to the mean loss where targets are given."""

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = Head(config)
        self.attention_kind = "sdpa"
        cos_TK, sin_TK = rotary_angles(config.sequence_length, config.head_width, config.rope_theta)
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)

    def forward(
        self, tokens_BT: Tensor, documents_BT: Tensor | None = None, targets_BT: Tensor | None = None
    ) -> Tensor:
        """Logits, or the mean cross-entropy in nats per token, computed in float32, where targets are given.

        Without `documents_BT` each sequence counts as one document.
        """
        length = tokens_BT.shape[1]
        x_BTD = self.embedding(tokens_BT)
        if torch.is_autocast_enabled(x_BTD.device.type):
            # The residual stream too: half the activations' memory and traffic.
            x_BTD = x_BTD.to(torch.get_autocast_dtype(x_BTD.device.type))
        mask = make_mask(documents_BT, self.attention_kind, x_BTD.dtype)
        cos_TK = self.cos_TK[:length].to(x_BTD.dtype)
        sin_TK = self.sin_TK[:length].to(x_BTD.dtype)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos_TK, sin_TK, mask)
        loss_or_logits: Tensor = self.head(self.norm(x_BTD), targets_BT)
        return loss_or_logits

    def fill_buffers(self) -> None:
        """Gives the buffers, which no checkpoint holds, their values on the device where they are."""
        config = self.config
        cos_TK, sin_TK = rotary_angles(config.sequence_length, config.head_width, config.rope_theta)
        self.cos_TK.copy_(cos_TK)
        self.sin_TK.copy_(sin_TK)

    def set_execution(self, attention: str, recompute: bool, compiled: bool, most_chunk: int = 0) -> None:
        """See `LanguageModel`; compiled: one function, shared by all blocks, and the loss."""
        self.attention_kind = attention
        for block in self.blocks:
            assert isinstance(block, Block)
            block.recompute = recompute
            block.branches = compile_each_shape(block.add_branches) if compiled else block.add_branches
        self.head.most_chunk = most_chunk
        self.head.differentiate = compile_each_shape(fusible_loss_and_gradient) if compiled else loss_and_gradient

    def initial_values(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter with its values under the study's rule, one at a time, always in one order.

        Embedding N(0, 1); matrices truncated normal, residual outputs shrunk by depth; head of standard deviation
        D^-1/2 cut at 3 standard deviations; gains 1. Reads only the parameters' shapes.
        """
        yield self.embedding.weight, torch.empty(self.embedding.weight.shape).normal_(0.0, 1.0, generator=generator)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            shrunk = MATRIX_STD / (2 * (layer + 1)) ** 0.5
            attention, ffn = block.attention, block.feed_forward
            for linear in (attention.wq, attention.wk, attention.wv, ffn.w1):
                yield linear.weight, _truncated_normal(linear.weight, MATRIX_STD, generator)
            for linear in (attention.wo, ffn.w2, ffn.w3):
                yield linear.weight, _truncated_normal(linear.weight, shrunk, generator)
        yield self.head.weight, _truncated_normal(self.head.weight, self.config.width**-0.5, generator)
        for module in self.modules():
            if isinstance(module, RMSNorm):
                yield module.gain, torch.ones(module.gain.shape)


def _truncated_normal(weight: Tensor, std: float, generator: torch.Generator) -> Tensor:
    values = torch.empty(weight.shape)
    return nn.init.trunc_normal_(values, 0.0, std, -3 * std, 3 * std, generator=generator)


def empty_model(config: ModelConfig) -> Transformer:
    """A model on the meta device: shapes, no values."""
    with torch.device("meta"):
        return Transformer(config)


@torch.no_grad()
def build_model(config: AnyModelConfig, seed: int, device: torch.device) -> Transformer:
    """A model whose initial values depend on `seed` alone, whatever the device and the ranks."""
    assert isinstance(config, ModelConfig)
    model = empty_model(config).to_empty(device=device)
    for parameter, values in model.initial_values(torch.Generator().manual_seed(seed)):
        parameter.copy_(values)
    model.fill_buffers()
    return model
