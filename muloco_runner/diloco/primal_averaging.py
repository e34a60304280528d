"""Generalized Primal Averaging (GPA, arXiv 2512.17131) as a method: every worker trains at y, and x is evaluated.

One worker is data parallel between its updates. Several are DiLoCo's workers with z in place of the parameters, whose
outer step is their plain average; x stays each worker's own, and the mean of all is the synchronised model.
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from muloco_runner.config import NoCompressionConfig, PrimalAveragingConfig, RunConfig
from muloco_runner.diloco.error_feedback import choose_codecs
from muloco_runner.diloco.exchange import Exchange
from muloco_runner.diloco.method import DataParallel, DiLoCo, OuterStep, build_diloco
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.optimizers.gpa import averaged_update, to_x, to_y


class PrimalAveraging:
    """A worker's tensors hold y, `z` holds the local workers' z, in their order; x follows from both."""

    has_local_models = False

    def __init__(
        self,
        config: PrimalAveragingConfig,
        workers: list[Worker],
        z: list[list[Tensor]],
        over_workers: DataParallel | DiLoCo,
        mean: Exchange,
    ) -> None:
        """`over_workers` sends the gradients of the only worker, or averages z; `mean` is exact."""
        self.config, self.workers, self.z, self.over_workers, self.mean = config, workers, z, over_workers, mean

    def updating(self, worker: Worker) -> AbstractContextManager[None]:
        return averaged_update(worker.tensors, self.updated_tensors(worker), self.config.share_kept, self.config.mu_y)

    def updated_tensors(self, worker: Worker) -> list[Tensor]:
        return self.z[worker.index - self.workers[0].index]

    def after_inner_step(self, step: int) -> OuterStep | None:
        averages_z = isinstance(self.over_workers, DiLoCo) and self.over_workers.exchanges_after(step)
        if not averages_z:
            return self.over_workers.after_inner_step(step)
        for worker, z in zip(self.workers, self.z, strict=True):
            to_x(worker.tensors, z, self.config.mu_y)
        outer_step = self.over_workers.after_inner_step(step)
        for worker, z in zip(self.workers, self.z, strict=True):
            to_y(worker.tensors, z, self.config.mu_y)
        return outer_step

    def synchronised_parameters(self) -> list[Tensor]:
        """The mean of all workers' x, in tensors of its own; all ranks must ask for it."""
        averages = [[tensor.detach().clone() for tensor in worker.tensors] for worker in self.workers]
        for x, z in zip(averages, self.z, strict=True):
            to_x(x, z, self.config.mu_y)
        self.mean.average(averages, averages[0])
        return averages[0]

    @property
    def bytes_sent(self) -> int:
        return self.over_workers.bytes_sent

    @bytes_sent.setter
    def bytes_sent(self, number: int) -> None:
        self.over_workers.bytes_sent = number

    @property
    def outer_steps(self) -> list[int]:
        return self.over_workers.outer_steps

    @outer_steps.setter
    def outer_steps(self, numbers: list[int]) -> None:
        self.over_workers.outer_steps = numbers

    @property
    def outer_numbers(self) -> list[list[dict[str, Any]]]:
        return self.over_workers.outer_numbers

    def state_dict(self) -> dict[str, list[Tensor]]:
        return self.over_workers.state_dict()

    def load_state_dict(
        self, state: dict[str, list[Tensor]], step: int, outer_numbers: list[list[dict[str, Any]]]
    ) -> None:
        self.over_workers.load_state_dict(state, step, outer_numbers)

    def worker_state(self, row: int) -> dict[str, list[Tensor]]:
        """z, and the error memory of its exchange, where there is one."""
        return {"z": self.z[row], **self.over_workers.worker_state(row)}

    def load_worker_state(self, row: int, state: dict[str, list[Tensor]]) -> None:
        torch._foreach_copy_(self.z[row], state["z"])
        self.over_workers.load_worker_state(row, {name: own for name, own in state.items() if name != "z"})


def build_primal_averaging(
    run: RunConfig, workers: list[Worker], communicator: Communicator, muon_backend: str
) -> PrimalAveraging:
    config, first = run.method, workers[0]
    assert isinstance(config, PrimalAveragingConfig)
    z = [[tensor.detach().clone() for tensor in worker.tensors] for worker in workers]
    over_workers: DataParallel | DiLoCo
    if config.of_z is None:
        over_workers = DataParallel(first)
    else:
        with_z = [dataclasses.replace(worker, tensors=own) for worker, own in zip(workers, z, strict=True)]
        of_z = dataclasses.replace(run, method=config.of_z)
        over_workers = build_diloco(of_z, with_z, communicator, muon_backend)
    exact = NoCompressionConfig()
    codecs = choose_codecs(exact, first.model)
    device = first.tensors[0].device
    mean = Exchange(first.tensors, codecs, exact.reduces_and_scatters, communicator, device)
    return PrimalAveraging(config, workers, z, over_workers, mean)
