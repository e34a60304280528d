"""The state of a run on this rank; in a checkpoint: full tensors by parameter name, whatever ranks train them.

The position in the data, the learning rate and the order of every batch are functions of the step, and are not stored.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from muloco_runner.config import RunConfig
from muloco_runner.diloco.method import DistributedMethod, OuterStep
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.dtensor import as_dtensor_like, copy_into, is_distributed, own_part
from muloco_runner.optimizers import Muon
from muloco_runner.training.checkpoints.store import Checkpoint
from muloco_runner.training.clock import TrainingClock

TensorLists = dict[str, list[Tensor]]
"""A method's state: lists of tensors like `Worker.tensors`."""


class TrainingState:
    """All that changes while a run trains."""

    def __init__(
        self,
        run: RunConfig,
        workers: list[Worker],
        method: DistributedMethod,
        clock: TrainingClock,
        device: torch.device,
    ) -> None:
        self.workers, self.method, self.clock = workers, method, clock
        self.step = 0
        """Inner steps completed."""
        self.losses = torch.zeros(len(workers), run.num_steps, device=device)
        """Training loss of each worker of this rank (rows) at each completed step."""
        self.started_at = time.time()
        """Unix seconds, of the first attempt."""
        self.local_validation_loss: float | None = None
        self.best: tuple[float, int] | None = None
        """The lowest validation loss and its step, where the best checkpoint is to be kept."""
        # In no checkpoint: they describe the last steps alone.
        self.named_losses: dict[str, float] = {}
        """Losses on the sets of `data.validation`, of the last evaluation."""
        self.gradient_norms = torch.zeros(len(workers), device=device)
        self.last_outer_step: OuterStep | None = None
        self.update_sums: Tensor | None = None
        """Sums of `UpdateSizes` of each worker of this rank at the last step (rows), where it was measured."""

    def snapshot(self) -> Checkpoint:
        """The state to save. Called on all ranks; tensors may be the live ones."""
        workers = {
            worker.index: {
                **_worker_state(worker, self.method.worker_state(row)),
                "losses": self.losses[row, : self.step],
            }
            for row, worker in enumerate(self.workers)
        }
        shared = {
            "method": _full_lists(self.workers[0], self.method.state_dict()),
            "bytes_sent": self.method.bytes_sent,
            "outer_steps": self.method.outer_steps,
            "outer_numbers": self.method.outer_numbers,
            "train_seconds": self.clock.seconds,
            "started_at": self.started_at,
            "local_validation_loss": self.local_validation_loss,
            "best": self.best,
            "random": _random_state(),
        }
        return Checkpoint(self.step, shared, workers)

    def restore(self, checkpoint: Checkpoint) -> None:
        """The inverse, on all ranks."""
        self.step, shared = checkpoint.step, checkpoint.shared
        for row, worker in enumerate(self.workers):
            state = checkpoint.workers[worker.index]
            self.method.load_worker_state(row, _load_worker_state(worker, state))
            self.losses[row, : self.step] = state["losses"].to(self.losses)
        # Absent from checkpoints of a time when no outer optimizer counted its steps, or kept numbers of its own.
        numbers = shared.get("outer_numbers", [])
        self.method.load_state_dict(_local_lists(self.workers[0], shared["method"]), self.step, numbers)
        self.method.bytes_sent = shared["bytes_sent"]
        self.method.outer_steps = shared.get("outer_steps", self.method.outer_steps)
        self.clock.seconds, self.started_at = shared["train_seconds"], shared["started_at"]
        self.local_validation_loss = shared["local_validation_loss"]
        best = shared.get("best")
        self.best = None if best is None else (float(best[0]), int(best[1]))
        _load_random_state(shared["random"])


def _worker_state(worker: Worker, method_state: TensorLists) -> dict[str, Any]:
    """Model, inner optimizer and the method's part. Called on every replica of the worker; the first one's counts.

    Tensors of a sharded model are full copies in the host's memory.
    """
    state = {"model": worker.model.state_dict(), "optimizer": worker.optimizer.state_dict()}
    return {**_full(state), "method": _full_lists(worker, method_state)}


@torch.no_grad()
def _load_worker_state(worker: Worker, state: dict[str, Any]) -> TensorLists:
    """The inverse, on every replica of the worker; returns the method's part: views, where the state was mapped, of a
    file that will be removed. Copy them before the next checkpoint."""
    for name, parameter in worker.model.named_parameters():
        copy_into(parameter, state["model"][name])
    parameters = [parameter for group in worker.optimizer.param_groups for parameter in group["params"]]
    saved = state["optimizer"]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    like = dict(zip(numbers, parameters, strict=True))
    own = saved["state"]
    if not isinstance(worker.optimizer, Muon):
        # torch's optimizers keep the tensors that they are given; Muon copies its part of each into its own.
        own = {number: {n: _local_copy(v, like[number]) for n, v in values.items()} for number, values in own.items()}
    worker.optimizer.load_state_dict({**saved, "state": own})
    return _local_lists(worker, state["method"])


def _full_lists(worker: Worker, state: TensorLists) -> TensorLists:
    """A method's full tensors; called on every replica of the worker."""
    return {name: [_full(_placed(t, p)) for t, p in _pairs(tensors, worker)] for name, tensors in state.items()}


def _local_lists(worker: Worker, state: TensorLists) -> TensorLists:
    """This rank's part of a method's full tensors."""
    return {
        name: [own_part(tensor, parameter) for tensor, parameter in _pairs(tensors, worker)]
        for name, tensors in state.items()
    }


def _pairs(tensors: Sequence[Tensor], worker: Worker) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors, worker.model.parameters(), strict=True))


def _placed(part: Tensor, parameter: Tensor) -> Tensor:
    return as_dtensor_like(part, parameter) if is_distributed(parameter) else part


def _local_copy(value: Any, parameter: Tensor) -> Any:
    """A copy, beside the parameter, of this rank's part of a full tensor shaped like it; of others that it finds, in
    lists too, a copy."""
    if isinstance(value, list | tuple):
        return type(value)(_local_copy(item, parameter) for item in value)
    if not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape:
        return value.clone()
    return _placed(own_part(value, parameter).to(parameter.device, copy=True), parameter)


def _full(value: Any) -> Any:
    """Sharded tensors, wherever in `value`, gathered one at a time; kept on the first replica alone."""
    if isinstance(value, dict):
        return {key: _full(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_full(item) for item in value]
    if not isinstance(value, Tensor) or not is_distributed(value):
        return value
    full = value.full_tensor()
    return full.cpu() if value.device_mesh.get_local_rank() == 0 else full.new_empty(0)


def _random_state() -> dict[str, Tensor]:
    """State of torch's own generators. The trainer does not draw from them while it trains; a user's code may."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _load_random_state(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
