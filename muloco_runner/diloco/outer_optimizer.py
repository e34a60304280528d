"""The outer step: what the workers' mean pseudogradient does to the anchor. One class an optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from muloco_runner.config import (
    OuterAdamConfig,
    OuterMomentumConfig,
    OuterMuonConfig,
    OuterOptimizerConfig,
    OuterSgdConfig,
)
from muloco_runner.config.variants import load
from muloco_runner.diloco.flat import flatten, views
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.row_shards import FullTensors
from muloco_runner.muon_rule.conventions import shape_scale
from muloco_runner.muon_rule.polynomial import named_polynomial
from muloco_runner.optimizers.orthogonalize import choose_backend, orthogonalize


@dataclass(frozen=True)
class SharedTensors:
    """The tensors that lie flat in one anchor, and what an optimizer may need to know of them."""

    tensors: Sequence[Tensor]
    matrices: Sequence[int]
    """Indices of the hidden matrices among them."""
    communicator: Communicator
    """Replicas that each hold rows of every tensor, where it is sharded."""
    muon_backend: str = "auto"

    def zeros(self) -> Tensor:
        """A tensor flat like the anchor."""
        return torch.zeros_like(flatten(self.tensors))


class OuterOptimizer(Protocol):
    """Built from its config and `SharedTensors`."""

    @property
    def state(self) -> dict[str, Tensor]:
        """What it keeps from one step to the next, by name, flat like the anchor; checkpoints hold it."""

    @property
    def numbers(self) -> list[dict[str, Any]]:
        """What else it keeps: single numbers of each tensor, by name; empty where it keeps none."""

    def load(self, state: Mapping[str, Tensor], numbers: Sequence[Mapping[str, Any]]) -> None:
        """Go on from copies of what they were in another one. Before its first step it has neither."""

    def step(self, anchor: Tensor, pseudogradient: Tensor, number: int) -> None:
        """Moves the anchor; the pseudogradient stays as it is. `number` counts its steps, from 1."""


def build_outer_optimizer(config: OuterOptimizerConfig, shared: SharedTensors) -> OuterOptimizer:
    """The optimizer that `config` describes, with its state at zero."""
    optimizer: OuterOptimizer = load(config)(config, shared)
    return optimizer


_VALUES_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Values that an outer step works on together: they stay in a CPU's cache, or keep a GPU busy."""


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same values of contiguous tensors, a part at a time: as a whole, temporaries would take several models."""
    at_once = _VALUES_AT_ONCE[tensors[0].device.type]
    return zip(*(tensor.view(-1).split(at_once) for tensor in tensors), strict=True)


def nesterov_outer_step(anchor: Tensor, velocity: Tensor, pseudogradient: Tensor, config: OuterMomentumConfig) -> None:
    """Moves anchor and velocity: u <- mu*u + eta*delta, then anchor - mu*u - eta*delta (anchor - u without Nesterov).

    Equal, at constant eta, to `torch.optim.SGD(nesterov=True)` on the gradient delta (DiLoCo, arXiv 2311.08105).
    Contiguous tensors of one shape.
    """
    for theta, u, delta in _chunks(anchor, velocity, pseudogradient):
        step = config.lr * delta
        u.mul_(config.momentum).add_(step)
        if config.nesterov:
            theta.sub_(config.momentum * u).sub_(step)
        else:
            theta.sub_(u)


class _FlatState:
    """Keeps tensors flat like the anchor, and no numbers."""

    numbers: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, *names: str, like: SharedTensors) -> None:
        self.state = {name: like.zeros() for name in names}

    def load(self, state: Mapping[str, Tensor], numbers: Sequence[Mapping[str, Any]]) -> None:
        for name, kept in self.state.items():
            kept.copy_(state[name])


class OuterSgd(_FlatState):
    """Nesterov momentum, heavy ball or, with lr 1 and no momentum, the workers' plain average."""

    def __init__(self, config: OuterSgdConfig, shared: SharedTensors) -> None:
        super().__init__(*([] if config.averages else ["velocity"]), like=shared)
        self.config = config

    def step(self, anchor: Tensor, pseudogradient: Tensor, number: int) -> None:
        if self.config.averages:
            anchor.sub_(pseudogradient)
            return
        nesterov_outer_step(anchor, self.state["velocity"], pseudogradient, self.config)


class OuterAdam(_FlatState):
    """Adam on the pseudogradient, equal to `torch.optim.Adam` (arXiv 1412.6980, algorithm 1)."""

    def __init__(self, config: OuterAdamConfig, shared: SharedTensors) -> None:
        super().__init__("first_moment", "second_moment", like=shared)
        self.config = config

    def step(self, anchor: Tensor, pseudogradient: Tensor, number: int) -> None:
        beta1, beta2 = self.config.betas
        step_size = self.config.lr / (1 - beta1**number)
        root = math.sqrt(1 - beta2**number)
        for theta, m, v, delta in _chunks(
            anchor, self.state["first_moment"], self.state["second_moment"], pseudogradient
        ):
            m.lerp_(delta, 1 - beta1)
            v.mul_(beta2).addcmul_(delta, delta, value=1 - beta2)
            theta.addcdiv_(m, v.sqrt().div_(root).add_(self.config.eps), value=-step_size)


class OuterMuon(_FlatState):
    """M <- mu*M + delta, anchor - lr*sqrt(fan_out/fan_in)*NS(M) on the hidden matrices; SGD on all other tensors.

    A hidden matrix's part of the velocity is its M. Where rows are spread over replicas, its owner orthogonalises it.
    """

    def __init__(self, config: OuterMuonConfig, shared: SharedTensors) -> None:
        super().__init__("velocity", like=shared)
        self.config, self.like, self.matrices = config, shared.tensors, shared.matrices
        self.backend = choose_backend(shared.muon_backend, self.state["velocity"].device)
        matrices, communicator = [self.like[index] for index in self.matrices], shared.communicator
        self.full = FullTensors.of(matrices, communicator.among_shards) if communicator.sharded and matrices else None

    def step(self, anchor: Tensor, pseudogradient: Tensor, number: int) -> None:
        flat = (anchor, self.state["velocity"], pseudogradient)
        anchors, momenta, deltas = (views(tensor, self.like) for tensor in flat)
        for index in set(range(len(self.like))) - set(self.matrices):
            nesterov_outer_step(anchors[index], momenta[index], deltas[index], self.config)
        for index in self.matrices:
            momenta[index].mul_(self.config.matrix_momentum).add_(deltas[index])
        updates = self._updates([momenta[index] for index in self.matrices])
        for index, update in zip(self.matrices, updates, strict=True):
            anchors[index].sub_(update)

    def _updates(self, momenta: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.full is None:
            return self._orthogonalized(momenta)
        updates = [torch.empty_like(momentum) for momentum in momenta]
        self.full.scatter(self._orthogonalized(self.full.gather(momenta)), updates)
        return updates

    def _orthogonalized(self, momenta: Sequence[Tensor]) -> list[Tensor]:
        """lr * sqrt(fan_out/fan_in) * NS(M) of each full matrix, those of one shape at once."""
        updates: dict[int, Tensor] = {}
        for shape in {momentum.shape: None for momentum in momenta}:
            indices = [index for index, momentum in enumerate(momenta) if momentum.shape == shape]
            scale = self.config.matrix_lr * shape_scale("spectral", *shape)
            momentum_BRC = torch.stack([momenta[index] for index in indices])
            directions_BRC = orthogonalize(momentum_BRC, _POLYNOMIAL, self.backend).to(momentum_BRC.dtype)
            updates.update(zip(indices, directions_BRC.mul_(scale).unbind(), strict=True))
        return [updates[index] for index in range(len(momenta))]


_POLYNOMIAL = named_polynomial("muloco", 5)
