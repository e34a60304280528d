"""What a worker takes along in a checkpoint: whole tensors by parameter name, whatever ranks hold them.

The place in the data, the learning rate and the order of every batch are functions of the step, and are not stored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muloco_runner.worker import Worker


def worker_state(worker: Worker) -> dict[str, Any]:
    """Model and inner optimizer. Called on every replica of the worker; tensors may be the live ones."""
    return {"model": worker.model.state_dict(), "optimizer": worker.optimizer.state_dict()}


def load_worker_state(worker: Worker, state: dict[str, Any]) -> None:
    """The inverse, on every replica of the worker."""
    worker.model.load_state_dict(state["model"])
    worker.optimizer.load_state_dict(state["optimizer"])


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
