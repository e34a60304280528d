"""What is trained: the shape of the transformer."""

from __future__ import annotations

from dataclasses import dataclass

from muloco_runner.config.checks import require, require_positive


@dataclass
class ModelConfig:
    """A decoder-only transformer of the study's shape (SwiGLU, QK-norm, pre- and post-norm, untied head)."""

    width: int = 512
    """Residual width D."""
    num_layers: int = 6
    head_width: int = 128
    """Width of one attention head; the number of heads is width / head_width."""
    vocab_size: int = 128_256
    sequence_length: int = 2048
    """Tokens in one training sequence."""
    ffn_ratio: float = 2.75
    """SwiGLU hidden width over D."""
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        require_positive(
            "model",
            width=self.width,
            num_layers=self.num_layers,
            head_width=self.head_width,
            vocab_size=self.vocab_size,
            sequence_length=self.sequence_length,
            ffn_ratio=self.ffn_ratio,
            rope_theta=self.rope_theta,
            norm_eps=self.norm_eps,
        )
        require(
            self.head_width % 2 == 0,
            f"model.head_width={self.head_width}: rotary embeddings need an even width",
        )
        require(
            self.width % self.head_width == 0,
            f"model.width={self.width} is not a multiple of model.head_width={self.head_width}: "
            f"choose a width such as {max(1, self.width // self.head_width) * self.head_width}",
        )
        require(
            float(self.width * self.ffn_ratio).is_integer(),
            f"model.width={self.width} times model.ffn_ratio={self.ffn_ratio} is not a whole number: change one",
        )

    @property
    def num_heads(self) -> int:
        return self.width // self.head_width

    @property
    def ffn_width(self) -> int:
        return round(self.width * self.ffn_ratio)

    @property
    def num_hidden_params(self) -> int:
        """Parameters in the matrices of attention and feed-forward, which Muon updates."""
        return self.num_layers * (4 * self.width**2 + 3 * self.width * self.ffn_width)

    @property
    def hardware_flops_per_token(self) -> int:
        """Flops that devices compute for a token of training: 6 (N - V D) + 7 L T D.

        The embedding is looked up, not multiplied: at small sizes 6 N is far more. Attention takes two products forward
        and five backward, scores computed again, each 2 T D a layer and half of it under the causal mask. Where
        sequences hold several documents it takes less; activations that are recomputed are not counted.
        """
        embedding = self.vocab_size * self.width
        return 6 * (self.num_params - embedding) + 7 * self.num_layers * self.sequence_length * self.width

    @property
    def num_params(self) -> int:
        """Exact parameter count N, embedding and head included."""
        gains = self.num_layers * (4 * self.width + 2 * self.head_width) + self.width
        return 2 * self.vocab_size * self.width + self.num_hidden_params + gains
