"""The outer step: what the workers' mean pseudogradient does to the anchor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from muloco_runner.config import OuterMuonConfig, OuterOptimizerConfig
from muloco_runner.diloco.flat import views
from muloco_runner.distributed.row_shards import WholeTensors
from muloco_runner.optimizers.orthogonalize import choose_backend, orthogonalize
from muloco_runner.optimizers.orthogonalize.polynomial import named_polynomial
from muloco_runner.optimizers.update_rule import shape_scale


class OuterOptimizer(Protocol):
    """Of tensors that lie flat in one."""

    velocity: Tensor
    """All its state, flat like the anchor."""

    def step(self, anchor: Tensor, pseudogradient: Tensor) -> None:
        """Moves the anchor; the pseudogradient stays as it is."""


_VALUES_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Of an outer step: what stays in a CPU's cache, and what keeps a GPU busy; small beside a model."""


def nesterov_outer_step(anchor: Tensor, velocity: Tensor, pseudogradient: Tensor, config: OuterOptimizerConfig) -> None:
    """Moves anchor and velocity: u <- mu*u + eta*delta, then anchor - mu*u - eta*delta (anchor - u without Nesterov).

    Equal, at constant eta, to `torch.optim.SGD(nesterov=True)` on the gradient delta (DiLoCo, arXiv 2311.08105). A part
    at a time: as whole tensors the products would take as much memory as three models. Contiguous tensors of one shape.
    """
    at_once = _VALUES_AT_ONCE[anchor.device.type]
    parts = (tensor.view(-1).split(at_once) for tensor in (anchor, velocity, pseudogradient))
    for theta, u, delta in zip(*parts, strict=True):
        step = config.lr * delta
        u.mul_(config.momentum).add_(step)
        if config.nesterov:
            theta.sub_(config.momentum * u).sub_(step)
        else:
            theta.sub_(u)


class OuterSgd:
    """Nesterov momentum, heavy ball or, with lr 1 and no momentum, the workers' plain average."""

    def __init__(self, config: OuterOptimizerConfig, anchor: Tensor) -> None:
        self.config = config
        self.velocity = torch.zeros_like(anchor)

    def step(self, anchor: Tensor, pseudogradient: Tensor) -> None:
        nesterov_outer_step(anchor, self.velocity, pseudogradient, self.config)


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
        wholes: WholeTensors | None = None,
    ) -> None:
        """`like` are the tensors that lie in the anchor, `matrices` the places of the hidden ones among them.

        With `wholes`, of the matrices, whose rows are spread over replicas: each is orthogonalised by its owner.
        """
        self.config, self.like, self.matrices, self.wholes = config, like, matrices, wholes
        self.velocity = torch.zeros_like(anchor)
        self.backend = choose_backend(backend, anchor.device)

    def step(self, anchor: Tensor, pseudogradient: Tensor) -> None:
        anchors, momenta, deltas = (views(flat, self.like) for flat in (anchor, self.velocity, pseudogradient))
        for place in set(range(len(self.like))) - set(self.matrices):
            nesterov_outer_step(anchors[place], momenta[place], deltas[place], self.config)
        for place in self.matrices:
            momenta[place].mul_(self.config.matrix_momentum).add_(deltas[place])
        updates = self._updates([momenta[place] for place in self.matrices])
        for place, update in zip(self.matrices, updates, strict=True):
            anchors[place].sub_(update)

    def _updates(self, momenta: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.wholes is None:
            return self._of_whole_matrices(momenta)
        updates = [torch.empty_like(momentum) for momentum in momenta]
        self.wholes.scatter(self._of_whole_matrices(self.wholes.gather(momenta)), updates)
        return updates

    def _of_whole_matrices(self, momenta: Sequence[Tensor]) -> list[Tensor]:
        """lr * sqrt(fan_out/fan_in) * NS(M) of each, those of one shape at once."""
        updates: dict[int, Tensor] = {}
        for shape in {momentum.shape: None for momentum in momenta}:
            places = [place for place, momentum in enumerate(momenta) if momentum.shape == shape]
            scale = self.config.matrix_lr * shape_scale("spectral", *shape)
            momentum_BRC = torch.stack([momenta[place] for place in places])
            directions_BRC = orthogonalize(momentum_BRC, _POLYNOMIAL, self.backend).to(momentum_BRC.dtype)
            updates.update(zip(places, directions_BRC.mul_(scale).unbind(), strict=True))
        return [updates[place] for place in range(len(momenta))]


_POLYNOMIAL = named_polynomial("muloco", 5)
