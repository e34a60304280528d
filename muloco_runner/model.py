"""The study's decoder-only transformer (arXiv 2505.23725): SwiGLU, rotary positions after QK-norm, RMSNorm before and
after each branch, untied embedding and head, no biases; attention is causal within a document.

Axes: B batch, T time, D model width, H heads, K head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muloco_runner.config import ModelConfig

MATRIX_STD = 0.02


class RMSNorm(nn.Module):
    """x / rms(x) * gain over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
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

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor, mask_B1TT: Tensor | None) -> Tensor:
        batch, length, width = x_BTD.shape
        heads = (batch, length, -1, self.head_width)
        q_BHTK = rotate(self.q_norm(self.wq(x_BTD).view(heads)).transpose(1, 2), cos_TK, sin_TK)
        k_BHTK = rotate(self.k_norm(self.wk(x_BTD).view(heads)).transpose(1, 2), cos_TK, sin_TK)
        v_BHTK = self.wv(x_BTD).view(heads).transpose(1, 2)
        y_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BHTK, v_BHTK, attn_mask=mask_B1TT, is_causal=mask_B1TT is None
        )
        return self.wo(y_BHTK.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.ffn_width, bias=False)
        self.w2 = nn.Linear(config.ffn_width, config.width, bias=False)
        self.w3 = nn.Linear(config.width, config.ffn_width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x_BTD)) * self.w3(x_BTD))


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_pre_norm = RMSNorm(config.width, config.norm_eps)
        self.attention_post_norm = RMSNorm(config.width, config.norm_eps)
        self.feed_forward_pre_norm = RMSNorm(config.width, config.norm_eps)
        self.feed_forward_post_norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor, mask_B1TT: Tensor | None) -> Tensor:
        attended = self.attention(self.attention_pre_norm(x_BTD), cos_TK, sin_TK, mask_B1TT)
        x_BTD = x_BTD + self.attention_post_norm(attended)
        return x_BTD + self.feed_forward_post_norm(self.feed_forward(self.feed_forward_pre_norm(x_BTD)))


def block_causal_mask(documents_BT: Tensor) -> Tensor:
    """True where a position may look: not ahead, and not into another document. Shape (B, 1, T, T)."""
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT.tril_()[:, None]


class Transformer(nn.Module):
    """Token ids (B, T) and document ids (B, T) to logits (B, T, V), or to the mean loss where targets are given."""

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        cos_TK, sin_TK = rotary_angles(config.sequence_length, config.head_width, config.rope_theta)
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)

    def forward(
        self, tokens_BT: Tensor, documents_BT: Tensor | None = None, targets_BT: Tensor | None = None
    ) -> Tensor:
        """Logits, or the mean cross-entropy in nats per token, computed in float32, where targets are given.

        Without `documents_BT` each sequence is taken as one document.
        """
        length = tokens_BT.shape[1]
        x_BTD = self.embedding(tokens_BT)
        mask_B1TT = None if documents_BT is None else block_causal_mask(documents_BT)
        cos_TK = self.cos_TK[:length].to(x_BTD.dtype)
        sin_TK = self.sin_TK[:length].to(x_BTD.dtype)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos_TK, sin_TK, mask_B1TT)
        logits_BTV: Tensor = self.head(self.norm(x_BTD))
        if targets_BT is None:
            return logits_BTV
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """The study's initialisation: embedding N(0, 1); matrices truncated normal, residual outputs shrunk by depth;
        head of standard deviation D^-1/2 cut at 3 standard deviations; gains 1."""
        self.embedding.weight.normal_(0.0, 1.0, generator=generator)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            shrunk = MATRIX_STD / (2 * (layer + 1)) ** 0.5
            attention, ffn = block.attention, block.feed_forward
            for linear in (attention.wq, attention.wk, attention.wv, ffn.w1):
                _truncated_normal(linear.weight, MATRIX_STD, generator)
            for linear in (attention.wo, ffn.w2, ffn.w3):
                _truncated_normal(linear.weight, shrunk, generator)
        _truncated_normal(self.head.weight, self.config.width**-0.5, generator)
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.gain.fill_(1.0)


def _truncated_normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(weight, 0.0, std, -3 * std, 3 * std, generator=generator)


def build_model(config: ModelConfig, seed: int, device: torch.device) -> Transformer:
    """A model whose initial values depend on `seed` alone, whatever the device and the ranks."""
    with torch.device("meta"):
        model = Transformer(config)
    model.to_empty(device="cpu")
    model.initialise(torch.Generator().manual_seed(seed))
    cos_TK, sin_TK = rotary_angles(config.sequence_length, config.head_width, config.rope_theta)
    model.cos_TK, model.sin_TK = cos_TK, sin_TK
    return model.to(device)
