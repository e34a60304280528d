"""train_lm.py in JAX: the same arguments, model, weights and batches, and so the same losses to rounding. No torch.

python jax_train_lm.py --compare
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import lm_setup as setup
import optax

from muloco_runner.jax import paper_muloco, paper_muon

Params = dict[str, jax.Array]


def norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6) * gain


def logits(params: Params, tokens_BT: jax.Array, num_heads: int) -> jax.Array:
    """Bytes (B, T) to logits (B, T, 256): pre-norm blocks of causal attention and SwiGLU."""

    def linear(name: str, x: jax.Array) -> jax.Array:
        return x @ params[f"{name}.weight"].T

    x_BTD = params["token_embedding.weight"][tokens_BT] + params["position_embedding.weight"][: tokens_BT.shape[1]]
    for layer in range(sum(name.endswith("query.weight") for name in params)):
        block = f"blocks.{layer}"
        normed = norm(x_BTD, params[f"{block}.attention_norm.weight"])
        heads = [
            linear(f"{block}.{name}", normed).reshape(*tokens_BT.shape, num_heads, -1)
            for name in ("query", "key", "value")
        ]
        mixed = jax.nn.dot_product_attention(*heads, is_causal=True)
        x_BTD = x_BTD + linear(f"{block}.mix", mixed.reshape(x_BTD.shape))
        normed = norm(x_BTD, params[f"{block}.mlp_norm.weight"])
        gated = jax.nn.silu(linear(f"{block}.gate", normed)) * linear(f"{block}.up", normed)
        x_BTD = x_BTD + linear(f"{block}.down", gated)
    return linear("head", norm(x_BTD, params["norm.weight"]))


def build_optimizer(name: str, args: argparse.Namespace) -> optax.GradientTransformation:
    """Return the study's MuLoCo or Muon after clipping. Weights are (out, in) here, as in torch."""
    rates = jnp.asarray(setup.learning_rates(args))
    settings: dict[str, Any] = {"weight_decay": args.weight_decay, "orientation": "out_in"}
    if name == "Muon":
        inner = paper_muon(lambda step: rates[step], **settings)
    else:
        inner = paper_muloco(
            lambda step: rates[step], args.outer_lr, args.outer_momentum, args.sync_interval, **settings
        )
    return optax.chain(optax.clip_by_global_norm(args.grad_clip or float("inf")), inner)


def train(name: str, args: argparse.Namespace) -> setup.History:
    """Train a model from the seed's weights on the seed's batches."""
    params: Params = {name: jnp.asarray(weight) for name, weight in setup.first_weights(args).items()}
    optimizer, history = build_optimizer(name, args), setup.History(name)
    state = optimizer.init(params)

    @jax.jit
    def loss_of(params: Params, tokens_BT: jax.Array) -> jax.Array:
        given = logits(params, tokens_BT[:, :-1], args.n_heads)
        return optax.softmax_cross_entropy_with_integer_labels(given, tokens_BT[:, 1:]).mean()

    @jax.jit
    def one_step(params: Params, state: Any, tokens_BT: jax.Array) -> tuple[Params, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(params, tokens_BT)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    def validate() -> float:
        return setup.validation_loss(args, lambda tokens: float(loss_of(params, tokens)))

    for step in range(args.steps):
        params, state, loss = one_step(params, state, setup.batch(args, step))
        history.add(args, float(loss), validate)
    return history


def main(argv: Sequence[str] | None = None) -> list[setup.History]:
    """Train as the command line says, print and plot."""
    args = setup.arguments("Train a small language model with MuLoCo in JAX.", argv)
    histories = [train(name, args) for name in ("MuLoCo", "Muon")[: 1 + args.compare]]
    setup.report(args, histories)
    return histories


if __name__ == "__main__":
    main()
