"""How far an inner step moves the weights: the root mean square of its update, and of the weights, by kind of module.

Measured on a sample of each tensor's values, evenly spaced, so that a logged step takes hardly longer than another and
no second model is ever held. Decay and clipping are part of the update; an outer step is not.

Axes: S sampled values, M kinds of module.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muloco_runner.diloco.worker import Worker

KINDS = ("embedding", "attention", "feed_forward", "norm", "head")
_SAMPLED_VALUES = 1 << 20
"""In all tensors of a rank; each has an equal share, or all that it has."""


def kind_of(name: str) -> str:
    """Return the kind of module of a parameter by its name, such as `blocks.0.attention.wq.weight`."""
    parts = name.split(".")
    if any(part.endswith("norm") for part in parts):
        return "norm"
    (kind,) = [kind for kind in KINDS if kind in parts]
    return kind


class UpdateSizes:
    """Measures steps of one worker."""

    def __init__(self, worker: Worker) -> None:
        named = zip((name for name, _ in worker.model.named_parameters()), worker.tensors, strict=True)
        of_kind: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        for name, tensor in named:
            if tensor.numel():
                of_kind[kind_of(name)].append(tensor)
        self._tensors = [tensor for tensors in of_kind.values() for tensor in tensors]
        share = max(1, _SAMPLED_VALUES // max(1, len(self._tensors)))
        # Odd, so that rows of an even width are not all sampled at the same columns.
        self._strides = [1 if t.numel() <= share else (t.numel() // share) | 1 for t in self._tensors]
        self._lengths = [sum(len(t.view(-1)[::s]) for t, s in self._of(tensors)) for tensors in of_kind.values()]
        weights = [
            tensor.new_full((len(tensor.view(-1)[::stride]),), tensor.numel() / len(tensor.view(-1)[::stride]))
            for tensor, stride in self._of(self._tensors)
        ]
        self._weights_S = torch.cat(weights) if weights else torch.zeros(0)
        """How many values each sampled one stands for."""
        self._before_S = self._weights_S

    def _of(self, tensors: list[Tensor]) -> list[tuple[Tensor, int]]:
        strides = {id(tensor): stride for tensor, stride in zip(self._tensors, self._strides, strict=True)}
        return [(tensor.detach(), strides[id(tensor)]) for tensor in tensors]

    def _sample(self) -> Tensor:
        return torch.cat([t.detach().view(-1)[::s] for t, s in zip(self._tensors, self._strides, strict=True)])

    def begin(self) -> None:
        """Call before the step."""
        self._before_S = self._sample()

    def end(self) -> Tensor:
        """Call after it; returns sums of squares of the update and of the weights before, and values (3, M)."""
        squares = ((self._sample() - self._before_S).square(), self._before_S.square(), torch.ones_like(self._before_S))
        sums = [
            torch.stack([part.sum() for part in (values_S * self._weights_S).split(self._lengths)])
            for values_S in squares
        ]
        self._before_S = self._weights_S
        return torch.stack(sums)


def sizes_of(sums_3M: Tensor) -> Tensor:
    """Return RMS of the update, and its ratio to that of the weights (2, M), from sums over all ranks of a model."""
    update_M, weight_M, count_M = sums_3M.double()
    return torch.stack([(update_M / count_M).sqrt(), (update_M / weight_M).sqrt()])
