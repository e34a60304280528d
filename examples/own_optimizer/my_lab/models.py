"""A model of our own, as any `nn.Module` that takes tokens: causal convolutions in place of attention."""

import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """Each channel over the last tokens, then all channels of a token, gated; both beside a residual."""

    def __init__(self, width: int, span: int) -> None:
        super().__init__()
        self.span = span
        self.norm = nn.RMSNorm(width)
        self.mix = nn.Conv1d(width, width, span, groups=width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (batch, tokens, width)."""
        # Padded on the left alone: no output sees a later token.
        mixed = self.mix(F.pad(self.norm(x).transpose(1, 2), (self.span - 1, 0))).transpose(1, 2)
        value, gate = self.up(mixed).chunk(2, dim=-1)
        return x + self.down(value * F.silu(gate))


class ConvNet(nn.Module):
    """Returns logits, (batch, tokens, vocabulary)."""

    def __init__(self, vocab_size: int, width: int = 32, depth: int = 2, span: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(Layer(width, span) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens`: ids, (batch, tokens)."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))
