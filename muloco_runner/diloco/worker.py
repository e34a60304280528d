"""One of the K workers as this rank holds it: a model, its inner optimizer, and this rank's part of every parameter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muloco_runner.model.language_model import LanguageModel


@dataclass
class Worker:
    """Optimizers and methods touch `tensors` alone, so that they need not know how replicas share the model."""

    index: int
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    tensors: list[Tensor]
    """This rank's part of each parameter, in the order of `model.parameters()`: plain leaves with their `grad`. The
    parameters themselves or, where replicas shard the model, contiguous rows of them, possibly none."""

    def drop_gradients(self) -> None:
        """Gives the gradients' memory back."""
        self.optimizer.zero_grad(set_to_none=True)
        for tensor in self.tensors:
            tensor.grad = None

    @contextlib.contextmanager
    def holding(self, values: Sequence[Tensor]) -> Iterator[LanguageModel]:
        """The model with `values`, which are like `tensors`, in place of its own; both are as before at the end.

        Contents change places one tensor at a time, so that no second model is ever held.
        """
        _exchange(self.tensors, values)
        try:
            yield self.model
        finally:
            _exchange(self.tensors, values)


@torch.no_grad()
def _exchange(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not other:
            kept = mine.clone()
            mine.copy_(other)
            other.copy_(kept)
