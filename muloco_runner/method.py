"""How workers share what they learn: `DataParallel`, and `DiLoCo` with its outer step.

The training loop names no algorithm: it averages
gradients over a worker's replicas, steps its inner optimizer, and lets `DistributedMethod.after_inner_step` do the
rest. A method holds the synchronised model, the one that is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from muloco_runner.config import DiLoCoConfig, OuterOptimizerConfig, RunConfig
from muloco_runner.topology import Communicator
from muloco_runner.worker import Worker


@dataclass
class OuterStep:
    """What an outer step leaves for the record."""

    pseudogradient_norm: float
    pseudogradient_cosine: float | None
    """Mean pairwise cosine between the workers' pseudogradients; None for one worker."""


class DistributedMethod(Protocol):
    """What the training loop asks of a method."""

    bytes_sent: int
    """Bytes that one worker has handed to the others, or one replica to the average, whatever the placement."""

    has_local_models: bool
    """Whether workers' own parameters differ from the synchronised model between outer steps."""

    def after_inner_step(self, step: int) -> OuterStep | None:
        """Called when `step` inner steps (from 1) are complete; the last word of a run is a synchronised model."""

    def synchronised_parameters(self) -> list[Tensor]:
        """The model as all workers last agreed on it: tensors like `Worker.tensors`, which may be those themselves."""

    def state_dict(self) -> dict[str, list[Tensor]]: ...

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None: ...


class DataParallel:
    """Every replica holds the same parameters after every step, so there is nothing left to do."""

    has_local_models = False

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.bytes_sent = 0
        self._gradient_bytes = sum(p.numel() * p.element_size() for p in worker.tensors)

    def after_inner_step(self, step: int) -> OuterStep | None:
        self.bytes_sent += self._gradient_bytes
        return None

    def synchronised_parameters(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.worker.tensors]

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        assert not state


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


class DiLoCo:
    """Workers train apart for H steps; then the mean of their pseudogradients moves the anchor they start from again.

    Inner optimizer state stays with its worker: never averaged, never reset. K = 1 runs the same code.
    """

    has_local_models = True

    def __init__(self, workers: list[Worker], config: DiLoCoConfig, num_steps: int, communicator: Communicator) -> None:
        self.workers, self.config, self.num_steps = workers, config, num_steps
        self.communicator = communicator
        self.anchor = _flatten(workers[0].tensors)
        self.velocity = torch.zeros_like(self.anchor)
        self.bytes_sent = 0

    def after_inner_step(self, step: int) -> OuterStep | None:
        # The last steps of a budget that H does not divide are shared too: what they learnt belongs to the result.
        if step % self.config.sync_interval and step != self.num_steps:
            return None
        return self.outer_step()

    def outer_step(self) -> OuterStep:
        """Pseudogradients, their average in worker order, the outer step; every worker restarts from the new anchor."""
        local = [self.anchor - _flatten(worker.tensors) for worker in self.workers]
        self.bytes_sent += local[0].numel() * local[0].element_size()
        pseudogradients = self.communicator.gather_over_workers(local)
        mean = pseudogradients[0].clone()
        for pseudogradient in pseudogradients[1:]:
            mean += pseudogradient
        mean /= len(pseudogradients)
        self.anchor, self.velocity = nesterov_outer_step(self.anchor, self.velocity, mean, self.config.outer_optimizer)
        for worker in self.workers:
            _unflatten_into(worker.tensors, self.anchor)
        norm = self.communicator.sum_over_shards(mean.square().sum()).sqrt()
        return OuterStep(float(norm), self._mean_cosine(pseudogradients))

    def _mean_cosine(self, pseudogradients: list[Tensor]) -> float | None:
        count = len(pseudogradients)
        if count < 2:
            return None
        stacked = torch.stack(pseudogradients)
        products = self.communicator.sum_over_shards(stacked @ stacked.T)
        norms = products.diag().sqrt().clamp_min(1e-30)
        cosines = products / norms / norms[:, None]
        return (float(cosines.sum()) - float(cosines.trace())) / (count * (count - 1))

    def synchronised_parameters(self) -> list[Tensor]:
        return _views(self.anchor, self.workers[0].tensors)

    def state_dict(self) -> dict[str, list[Tensor]]:
        parameters = self.workers[0].tensors
        return {"anchor": _views(self.anchor, parameters), "velocity": _views(self.velocity, parameters)}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        self.anchor = _flatten(state["anchor"]).to(self.anchor)
        self.velocity = _flatten(state["velocity"]).to(self.velocity)


def build_method(run: RunConfig, workers: list[Worker], communicator: Communicator) -> DistributedMethod:
    """The method that `run.method` names, over the workers of this rank."""
    if isinstance(run.method, DiLoCoConfig):
        return DiLoCo(workers, run.method, run.num_steps, communicator)
    (worker,) = workers
    return DataParallel(worker)


def _flatten(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _views(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    pieces = flat.split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]


def _unflatten_into(parameters: list[Tensor], flat: Tensor) -> None:
    with torch.no_grad():
        torch._foreach_copy_(parameters, _views(flat, parameters))
