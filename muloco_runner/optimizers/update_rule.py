"""Muon's update rule as small functions of tensors and settings; the buckets apply it, fused kernels follow it.

sum: M <- momentum M + G              Nesterov looks ahead to G + momentum M
ema: M <- momentum M + (1 - momentum) G                      (1 - momentum) G + momentum M
                    "corrected" divides by what both still lack after t steps, 1 - momentum^(t+1) and 1 - momentum^t
W <- (1 - lr weight_decay) W - lr shape_scale NS(M, or what Nesterov looks ahead to)
        "cautious" decay is of those weights alone that have the sign of their update, or one of both is 0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import torch
from torch import Tensor

from muloco_runner.config.inner_optimizer import MomentumForm, WeightDecayForm
from muloco_runner.muon_rule.conventions import corrected_look_ahead

NUMBERS = ("lr", "momentum", "eps", "epsilon", "norm_floor", "weight_decay")
"""Settings that are one number each; a tensor of one element is one."""


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


def decay_(weights: Sequence[Tensor], updates: Sequence[Tensor], kept: float, form: WeightDecayForm) -> None:
    """Multiply weights by `kept` in place: all of them, or "cautious" those whose product with the update that is about
    to be subtracted is at least 0 (arXiv 2510.12402)."""
    match form:
        case "decoupled":
            torch._foreach_mul_(list(weights), kept)
        case "cautious":
            for weight, update in zip(weights, updates, strict=True):
                agrees = update * weight >= 0
                # Filled where the weight is: a number copied to a GPU would wait for all work there.
                weight.mul_(torch.where(agrees, weight.new_full((), kept), weight.new_ones(())))
        case _:
            assert_never(form)
