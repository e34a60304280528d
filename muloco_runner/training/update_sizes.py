"""How far an inner step moves the weights: the root mean square of its update, and of the weights, by kind of module.

Measured on a sample of each tensor's values, evenly spaced, so that a logged step takes hardly longer than another and
no second model is ever held. Decay and clipping are part of the update; an outer step is not.

Axes: S sampled values, T tensors, M kinds of module.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from muloco_runner.diloco.worker import Worker
from muloco_runner.model.transformer import Transformer
from muloco_runner.optimizers import parameter_kinds

KINDS = ("embedding", "attention", "feed_forward", "norm", "head", "hidden", "other")
"""The study's transformer has the first five; of a model from outside, hidden matrices are told from others."""
_SAMPLED_VALUES = 1 << 18
"""In all tensors of a rank; each has an equal share, or all that it has. They are held during a logged step, 1 MB,
which the memory estimate leaves out."""


def kind_of(name: str) -> str:
    """Return the kind of module of a parameter by its name, such as `blocks.0.attention.wq.weight`."""
    parts = name.split(".")
    if any(part.endswith("norm") for part in parts):
        return "norm"
    (kind,) = [kind for kind in KINDS if kind in parts]
    return kind


class UpdateSizes:
    """Measures steps of one worker."""

    def __init__(self, worker: Worker, updated: Sequence[Tensor]) -> None:
        """`updated` are the tensors that the worker's optimizer moves, in the order of its model's parameters."""
        names = [name for name, _ in worker.model.named_parameters()]
        is_ours = isinstance(worker.model, Transformer)
        kinds = {name: kind_of(name) for name in names} if is_ours else parameter_kinds(worker.model)
        named = zip(names, updated, strict=True)
        of_kind: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        for name, tensor in named:
            if tensor.numel():
                of_kind[kinds[name]].append(tensor)
        self._tensors = [tensor for tensors in of_kind.values() for tensor in tensors]
        share = max(1, _SAMPLED_VALUES // max(1, len(self._tensors)))
        # Odd, so that rows of an even width are not all sampled at the same columns.
        self._strides = [1 if t.numel() <= share else (t.numel() // share) | 1 for t in self._tensors]
        self._lengths = [-(-t.numel() // s) for t, s in zip(self._tensors, self._strides, strict=True)]
        device = worker.tensors[0].device
        stands_for = [t.numel() / n for t, n in zip(self._tensors, self._lengths, strict=True)]
        self._stands_for_T = torch.tensor(stands_for, device=device)
        """How many values each sampled one stands for."""
        numbers = [number for number, tensors in enumerate(of_kind.values()) for _ in tensors]
        self._kind_T = torch.tensor(numbers, dtype=torch.int64, device=device)
        self._before_S: Tensor | None = None

    def _sample(self) -> Tensor:
        samples = [t.detach().view(-1)[::s] for t, s in zip(self._tensors, self._strides, strict=True)]
        return torch.cat(samples) if samples else self._stands_for_T

    def begin(self) -> None:
        """Call before the step."""
        self._before_S = self._sample()

    def end(self) -> Tensor:
        """Call after it; returns sums of squares of the update and of the weights before, and values (3, M)."""
        before_S, self._before_S = self._before_S, None
        assert before_S is not None, "begin comes first"
        counts_T = torch.tensor(self._lengths, dtype=torch.float32, device=self._stands_for_T.device)
        sums_3T = (
            self._of_tensors((self._sample() - before_S).square()), self._of_tensors(before_S.square()), counts_T
        )  # fmt: skip
        return torch.stack([self._of_kinds(sums_T * self._stands_for_T) for sums_T in sums_3T])

    def _of_tensors(self, values_S: Tensor) -> Tensor:
        parts = [part.sum() for part in values_S.split(self._lengths)] if self._lengths else []
        return torch.stack(parts) if parts else self._stands_for_T

    def _of_kinds(self, sums_T: Tensor) -> Tensor:
        return sums_T.new_zeros(len(KINDS)).index_add_(0, self._kind_T, sums_T)


def sizes_of(sums_3M: Tensor) -> Tensor:
    """Return RMS of the update, and its ratio to that of the weights (2, M), from sums over all ranks of a model."""
    update_M, weight_M, count_M = sums_3M.double()
    return torch.stack([(update_M / count_M).sqrt(), (update_M / weight_M).sqrt()])
