"""Muon's update rule as small functions of tensors and settings; the buckets apply it, fused kernels follow it.

sum: M <- momentum M + G              Nesterov looks ahead to G + momentum M
ema: M <- momentum M + (1 - momentum) G                      (1 - momentum) G + momentum M
                    "corrected" divides by what both still lack after t steps, 1 - momentum^(t+1) and 1 - momentum^t
W <- (1 - lr weight_decay) W - lr shape_scale NS(M, or what Nesterov looks ahead to)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, assert_never

import torch
from torch import Tensor

from muloco_runner.config.inner_optimizer import LrScale, MomentumForm
from muloco_runner.optimizers.orthogonalize.polynomial import Polynomial, named_polynomial

NUMBERS = ("lr", "momentum", "eps", "epsilon", "norm_floor", "weight_decay")
"""Settings that are one number each; a tensor of one element is one."""


def shape_scale(convention: LrScale, rows: int, columns: int) -> float:
    """Return the factor on the learning rate of a matrix of shape (rows, columns), that is (fan-out, fan-in)."""
    match convention:
        case "spectral":  # arXiv 2505.23725
            return float((rows / columns) ** 0.5)
        case "keller_jordan":  # kellerjordan.github.io/posts/muon
            return float(max(1.0, rows / columns) ** 0.5)
        case "moonlight":  # arXiv 2502.16982
            return float(0.2 * max(rows, columns) ** 0.5)
        case "none":
            return 1.0
        case _:
            assert_never(convention)


def step_settings(group: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a group for one step, numbers as floats whatever they were given as."""
    beta1, beta2 = group["betas"]
    numbers = {name: float(group[name]) for name in NUMBERS}
    ahead = numbers["momentum"]
    if group["nesterov"] == "corrected":
        group["nesterov_steps"] += 1
        ahead = corrected_look_ahead(ahead, group["nesterov_steps"])
    return {**group, **numbers, "betas": (float(beta1), float(beta2)), "look_ahead": ahead}


def is_cycled(group: Mapping[str, Any]) -> bool:
    """Whether a Muon group's momentum is set by `OneCycleLR` or `CyclicLR`, which set `betas[0]` where there is one."""
    return "base_momentum" in group and group["algorithm"] == "muon"


def follow_cycled_momentum(group: dict[str, Any], known: Mapping[str, Any]) -> None:
    """Give `momentum` and `betas[0]` of a cycled group the value that was set since `known`; of two, `momentum`'s."""
    if group["momentum"] is known["momentum"]:
        group["momentum"] = group["betas"][0]
    # A number of its own, so that the same one set again by hand is told from none set.
    group["momentum"] = group["momentum"] * 1.0
    group["betas"] = (group["momentum"], *group["betas"][1:])


def corrected_look_ahead(momentum: float, step: int) -> float:
    """Return the share of M, the rest being G's, in what Nesterov with bias correction mixes at step t = 1, 2, ...:
    momentum M / (1 - momentum^(t+1)) + (1 - momentum) G / (1 - momentum^t), but for a factor, which is nothing to what
    is orthogonalised.
    """
    ahead = momentum / (1 - momentum ** (step + 1))
    return ahead / (ahead + (1 - momentum) / (1 - momentum**step))


def polynomial_of(group: dict[str, Any]) -> Polynomial:
    """Return the Newton-Schulz polynomial that a parameter group names, with its normalisation."""
    coefficients, num_iterations = group["coefficients"], group["num_iterations"]
    if isinstance(coefficients, str):
        named = named_polynomial(coefficients, num_iterations)
    else:
        named = Polynomial((tuple(coefficients),) * num_iterations)
    return replace(named, epsilon=group["epsilon"], norm_floor=max(named.norm_floor, group["norm_floor"]))


def gradient_weight(form: MomentumForm, momentum: float) -> float:
    """Return the factor on the gradient as it enters the momentum."""
    match form:
        case "sum":
            return 1.0
        case "ema":
            return 1.0 - momentum
        case _:
            assert_never(form)


def accumulate_momentum_(buffer: Tensor, gradient: Tensor, momentum: float, form: MomentumForm) -> None:
    """Add a gradient to the momentum `buffer` of the same shape and dtype, in place."""
    match form:
        case "sum":
            torch.add(gradient, buffer, alpha=momentum, out=buffer)
        case "ema":
            buffer.lerp_(gradient, 1 - momentum)
        case _:
            assert_never(form)


def look_ahead(buffer: Tensor, gradient: Tensor, momentum: float, form: MomentumForm, out: Tensor) -> None:
    """Write into `out` Nesterov's update: the momentum that the same gradient would lead to once more."""
    match form:
        case "sum":
            torch.add(gradient, buffer, alpha=momentum, out=out)
        case "ema":
            torch.lerp(gradient, buffer, momentum, out=out)
        case _:
            assert_never(form)
