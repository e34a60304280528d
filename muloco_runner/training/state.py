"""What a worker takes along in a checkpoint: whole tensors by parameter name, whatever ranks hold them.

The place in the data, the learning rate and the order of every batch are functions of the step, and are not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.dtensor import as_dtensor_like, copy_into, own_part
from muloco_runner.optimizers import Muon

TensorLists = dict[str, list[Tensor]]
"""Of a method: lists of tensors like `Worker.tensors`."""


def worker_state(worker: Worker, method_state: TensorLists) -> dict[str, Any]:
    """Model, inner optimizer and the method's part. Called on every replica of the worker; the first one's counts.

    Tensors may be the live ones; of a sharded model they are whole copies in the host's memory.
    """
    state = {"model": worker.model.state_dict(), "optimizer": worker.optimizer.state_dict()}
    return {**_whole(state), "method": whole_lists(worker, method_state)}


@torch.no_grad()
def load_worker_state(worker: Worker, state: dict[str, Any]) -> TensorLists:
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
        # torch's optimizers keep the tensors that they are given; Muon copies its part of each into what it has.
        own = {number: {n: _kept(v, like[number]) for n, v in values.items()} for number, values in own.items()}
    worker.optimizer.load_state_dict({**saved, "state": own})
    return own_lists(worker, state["method"])


def whole_lists(worker: Worker, state: TensorLists) -> TensorLists:
    """A method's tensors, whole; called on every replica of the worker."""
    return {name: [_whole(_placed(t, p)) for t, p in _pairs(tensors, worker)] for name, tensors in state.items()}


def own_lists(worker: Worker, state: TensorLists) -> TensorLists:
    """Of a method's whole tensors what this rank holds."""
    return {
        name: [own_part(tensor, parameter) for tensor, parameter in _pairs(tensors, worker)]
        for name, tensors in state.items()
    }


def _pairs(tensors: Sequence[Tensor], worker: Worker) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors, worker.model.parameters(), strict=True))


def _placed(part: Tensor, parameter: Tensor) -> Tensor:
    return as_dtensor_like(part, parameter) if isinstance(parameter, DTensor) else part


def _kept(value: Any, parameter: Tensor) -> Any:
    """A copy, beside the parameter, of this rank's part of a whole tensor shaped like it; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape:
        return value.clone()
    return _placed(own_part(value, parameter).to(parameter.device, copy=True), parameter)


def _whole(value: Any) -> Any:
    """Sharded tensors, wherever in `value`, gathered one at a time; kept on the first replica alone."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if value.device_mesh.get_local_rank() == 0 else whole.new_empty(0)


def random_state() -> dict[str, Tensor]:
    """State of torch's own generators. Nothing of the trainer draws from them once it has begun; a user's code may."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def load_random_state(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
