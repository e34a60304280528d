"""Trains a small language model with MuLoCo (one worker), beside Muon with --compare. Needs torch and this package.

python train_lm.py --compare                               # minutes on a CPU; the standard library's source
python train_lm.py --dataset my_text.txt --d-model 512 --n-layers 8 --seq-len 1024 --steps 5000 --compile
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lm_setup as setup
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from muloco_runner.optimizers import MuLoCo1, Muon, parameter_groups


class Block(nn.Module):
    """Causal attention and SwiGLU, each after an RMSNorm."""

    def __init__(self, width: int, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        normed = self.attention_norm(x_BTD)
        heads = [
            layer(normed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x_BTD = x_BTD + self.mix(mixed.transpose(1, 2).flatten(2))
        normed = self.mlp_norm(x_BTD)
        return x_BTD + self.down(functional.silu(self.gate(normed)) * self.up(normed))


class LanguageModel(nn.Module):
    """Bytes (B, T) to logits (B, T, 256)."""

    def __init__(self, weights: setup.Weights, num_heads: int) -> None:
        super().__init__()
        vocabulary, width = weights["token_embedding.weight"].shape
        hidden = len(weights["blocks.0.up.weight"])
        num_layers = sum(name.endswith("query.weight") for name in weights)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(len(weights["position_embedding.weight"]), width)
        self.blocks = nn.ModuleList(Block(width, hidden, num_heads) for _ in range(num_layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.token_embedding(tokens_BT) + self.position_embedding.weight[: tokens_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD))


def build_optimizer(name: str, model: nn.Module, args: argparse.Namespace) -> Muon:
    """Return the study's MuLoCo or Muon; `reference` on a CPU keeps to float32."""
    groups, backend = parameter_groups(model), "auto" if torch.cuda.is_available() else "reference"
    if name == "Muon":
        return Muon.like("paper", groups, lr=args.inner_lr, weight_decay=args.weight_decay, backend=backend)
    return MuLoCo1.like(
        "paper",
        groups,
        inner_lr=args.inner_lr,
        outer_lr=args.outer_lr,
        outer_momentum=args.outer_momentum,
        sync_interval=args.sync_interval,
        weight_decay=args.weight_decay,
        backend=backend,
    )


def train(name: str, args: argparse.Namespace) -> setup.History:
    """Train a model from the seed's weights on the seed's batches."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LanguageModel(setup.first_weights(args), args.n_heads).to(device)
    optimizer, history = build_optimizer(name, model, args), setup.History(name)
    forward = torch.compile(model) if args.compile else model

    def loss_of(tokens: np.ndarray) -> Tensor:
        tokens_BT = torch.from_numpy(tokens).to(device)
        return functional.cross_entropy(forward(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten())

    @torch.no_grad()
    def validate() -> float:
        return setup.validation_loss(args, lambda tokens: loss_of(tokens).item())

    for step, rate in enumerate(setup.learning_rates(args)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(setup.batch(args, step))
        loss.backward()
        if args.grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        history.add(args, loss.item(), validate)
    return history


def main(argv: Sequence[str] | None = None) -> list[setup.History]:
    """Train as the command line says, print and plot."""
    args = setup.arguments("Train a small language model with MuLoCo in torch.", argv)
    histories = [train(name, args) for name in ("MuLoCo", "Muon")[: 1 + args.compare]]
    setup.report(args, histories)
    return histories


if __name__ == "__main__":
    main()
