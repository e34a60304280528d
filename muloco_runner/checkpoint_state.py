"""What a worker takes along in a checkpoint: whole tensors by parameter name, whatever ranks hold them.

The place in the data, the learning rate and the order of every batch are functions of the step, and are not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from muloco_runner.optimizers.placement import copy_into, placed_like
from muloco_runner.worker import Worker

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
    """The inverse, on every replica of the worker; returns the method's part."""
    for name, parameter in worker.model.named_parameters():
        copy_into(parameter, state["model"][name])
    parameters = [parameter for group in worker.optimizer.param_groups for parameter in group["params"]]
    saved = state["optimizer"]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    like = dict(zip(numbers, parameters, strict=True))
    own = {
        number: {name: _own(value, like[number]) for name, value in values.items()}
        for number, values in saved["state"].items()
    }
    worker.optimizer.load_state_dict({**saved, "state": own})
    return own_lists(worker, state["method"])


def whole_lists(worker: Worker, state: TensorLists) -> TensorLists:
    """A method's tensors, whole; called on every replica of the worker."""
    return {name: [_whole(_placed(t, p)) for t, p in _pairs(tensors, worker)] for name, tensors in state.items()}


def own_lists(worker: Worker, state: TensorLists) -> TensorLists:
    """Of a method's whole tensors what this rank holds."""
    return {
        name: [_placed_part(_own(tensor, parameter)) for tensor, parameter in _pairs(tensors, worker)]
        for name, tensors in state.items()
    }


def _pairs(tensors: Sequence[Tensor], worker: Worker) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors, worker.model.parameters(), strict=True))


def _placed(part: Tensor, parameter: Tensor) -> Tensor:
    return placed_like(part, parameter) if isinstance(parameter, DTensor) else part


def _placed_part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _own(value: Any, parameter: Tensor) -> Any:
    """This rank's part of a whole tensor that is shaped like a parameter; anything else as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


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
