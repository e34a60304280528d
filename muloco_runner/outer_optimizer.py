"""The outer step: what the workers' mean pseudogradient does to the anchor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from muloco_runner.config import OuterMuonConfig, OuterOptimizerConfig
from muloco_runner.flat import views
from muloco_runner.optimizers.matrix_bank import shape_scale
from muloco_runner.optimizers.orthogonalize import choose_backend, orthogonalize
from muloco_runner.optimizers.orthogonalize.polynomial import named_polynomial


class OuterOptimizer(Protocol):
    """Of tensors that lie flat in one."""

    velocity: Tensor
    """All its state, flat like the anchor."""

    def step(self, anchor: Tensor, pseudogradient: Tensor) -> Tensor:
        """The new anchor; the arguments stay as they are."""


def nesterov_outer_step(
    anchor: Tensor, velocity: Tensor, pseudogradient: Tensor, config: OuterOptimizerConfig
) -> tuple[Tensor, Tensor]:
    """The new anchor and velocity: u <- mu*u + eta*delta, then anchor - mu*u - eta*delta (anchor - u without Nesterov).

    Equal, at constant eta, to `torch.optim.SGD(nesterov=True)` on the gradient delta (DiLoCo, arXiv 2311.08105).
    """
    velocity = config.momentum * velocity + config.lr * pseudogradient
    if config.nesterov:
        return anchor - config.momentum * velocity - config.lr * pseudogradient, velocity
    return anchor - velocity, velocity


class OuterSgd:
    """Nesterov momentum, heavy ball or, with lr 1 and no momentum, the workers' plain average."""

    def __init__(self, config: OuterOptimizerConfig, anchor: Tensor) -> None:
        self.config = config
        self.velocity = torch.zeros_like(anchor)

    def step(self, anchor: Tensor, pseudogradient: Tensor) -> Tensor:
        anchor, self.velocity = nesterov_outer_step(anchor, self.velocity, pseudogradient, self.config)
        return anchor


class OuterMuon:
    """M <- mu*M + delta, anchor - lr*sqrt(fan_out/fan_in)*NS(M) on the hidden matrices; SGD on all other tensors.

    A hidden matrix's part of the velocity is its M.
    """

    def __init__(
        self,
        config: OuterMuonConfig,
        anchor: Tensor,
        like: Sequence[Tensor],
        matrices: Sequence[int],
        backend: str = "auto",
    ) -> None:
        """`like` are the tensors that lie in the anchor, `matrices` the places of the hidden ones among them."""
        self.config, self.like = config, like
        self.velocity = torch.zeros_like(anchor)
        self.backend = choose_backend(backend, anchor.device)
        self.same_shape: dict[torch.Size, list[int]] = {}
        for place in matrices:
            self.same_shape.setdefault(like[place].shape, []).append(place)

    def step(self, anchor: Tensor, pseudogradient: Tensor) -> Tensor:
        moved, velocity = nesterov_outer_step(anchor, self.velocity, pseudogradient, self.config)
        old_velocities, velocities = views(self.velocity, self.like), views(velocity, self.like)
        pseudogradients, anchors, results = (views(flat, self.like) for flat in (pseudogradient, anchor, moved))
        for shape, places in self.same_shape.items():
            scale = self.config.matrix_lr * shape_scale("spectral", *shape)
            for place in places:
                velocities[place].copy_(self.config.matrix_momentum * old_velocities[place] + pseudogradients[place])
            momentum_BRC = torch.stack([velocities[place] for place in places])
            for place, direction in zip(places, orthogonalize(momentum_BRC, _POLYNOMIAL, self.backend), strict=True):
                results[place].copy_(anchors[place] - scale * direction)
        self.velocity = velocity
        return moved


_POLYNOMIAL = named_polynomial("muloco", 5)
