"""Matrices of one shape in one place: their momentum is one tensor, allocated once, and each matrix's is a view of it.

A `MatrixBank` holds whole matrices and updates them alone. `fused_bank` does it in fused kernels; `shared_bank` and
`sharded_bank` share the work over ranks.

Axes: B matrices of the bank, R rows (fan-out), C columns (fan-in).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from muloco_runner.distributed.dtensor import local, state_dtype
from muloco_runner.distributed.pending import InFlight
from muloco_runner.optimizers.orthogonalize import (
    TRITON_DTYPES,
    choose_backend,
    matrices_at_once,
    orthogonalize,
    works_matrix_by_matrix,
)
from muloco_runner.optimizers.orthogonalize.polynomial import Polynomial, named_polynomial
from muloco_runner.optimizers.threads import share_over_threads


def shape_scale(convention: str, rows: int, columns: int) -> float:
    """Factor on the learning rate of a (fan_out, fan_in) matrix."""
    match convention:
        case "spectral":
            return (rows / columns) ** 0.5
        case "keller_jordan":
            return max(1.0, rows / columns) ** 0.5
        case "moonlight":
            return 0.2 * max(rows, columns) ** 0.5
    raise ValueError(f"lr_scale={convention!r}: must be one of spectral, keller_jordan, moonlight")


class MatrixBank:
    """Same-shape, same-device parameters of one group, and their Muon step."""

    def __init__(self, parameters: list[Tensor], backend: str, held: Sequence[int] | None = None) -> None:
        """`held` are the indices of the matrices whose momentum lies here: all, unless told otherwise."""
        self.parameters = parameters
        self.rows, self.columns = parameters[0].shape
        self.device = parameters[0].device
        self.dtype = state_dtype(parameters[0])
        self.backend = choose_backend(backend, self.device)
        self.place = {index: place for place, index in enumerate(range(len(parameters)) if held is None else held)}
        """Index of a matrix to its place in the momentum's bank."""
        shape = (len(self.place), *local(parameters[0]).shape)
        self.momentum_BRC = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.gradients: list[Tensor | None] = []
        self.clip: Tensor | None = None
        self._taken: dict[int, Tensor] = {}

    def momentum(self, index: int) -> Tensor:
        """That of a matrix held here, a view of the bank."""
        return self.momentum_BRC[self.place[index]]

    def state(self, index: int) -> dict[str, Tensor]:
        """What is kept for a parameter on this rank, by name."""
        return {"momentum": self.momentum(index)} if index in self.place else {}

    def prepare(self, group: dict[str, Any], gradients: Sequence[Tensor | None], clip: Tensor | None) -> None:
        """Takes the gradients of the next step, one a parameter, and a factor on them (0-D) if any."""
        self.gradients, self.clip = list(gradients), clip

    def launch(self, group: dict[str, Any], in_flight: InFlight) -> None:
        """One update of every matrix that has a gradient, with the hyper-parameters of `group`."""
        chosen = [index for index in self.place if self.gradients[index] is not None]
        at_once = matrices_at_once(self.backend, self.rows, self.columns)

        def update(indices: Sequence[int]) -> None:
            for start in range(0, len(indices), at_once):
                part = indices[start : start + at_once]
                self.move(group, part, list(self.orthogonal_updates(group, part).unbind()))

        if works_matrix_by_matrix(self.backend, self.rows, self.columns, self.dtype):
            share_over_threads(update, chosen)
        else:
            update(chosen)
        self.gradients = []

    def orthogonal_updates(self, group: dict[str, Any], indices: Sequence[int]) -> Tensor:
        """Takes the gradients of these matrices, which are held here, and orthogonalises what that makes of them."""
        self._take_gradients(group, indices)
        orthogonal_BRC = orthogonalize(self._updates(group, indices), polynomial_of(group), self.backend)
        for index in indices:
            self._taken.pop(index, None)
        return orthogonal_BRC

    def _take_gradients(self, group: dict[str, Any], indices: Iterable[int]) -> list[int]:
        """Gradients of these matrices into their momentum, for `_updates`; the indices of those that had one."""
        taken = {
            index: local(gradient).to(self.dtype)
            for index in indices
            if (gradient := self.gradients[index]) is not None
        }
        if self.clip is not None:
            taken = {index: gradient * self.clip for index, gradient in taken.items()}
        self._taken.update(taken)
        for index, gradient in taken.items():
            momentum, mu = self.momentum(index), group["momentum"]
            if group["momentum_form"] == "sum":
                torch.add(gradient, momentum, alpha=mu, out=momentum)
            else:
                momentum.lerp_(gradient, 1 - mu)
        return list(taken)

    def _updates(self, group: dict[str, Any], indices: Sequence[int]) -> Tensor:
        """What is to be orthogonalised, for these matrices: their momentum, or Nesterov's step ahead of it."""
        places = [self.place[index] for index in indices]
        if not group["nesterov"]:
            whole = places == list(range(places[0], places[0] + len(places)))
            return self.momentum_BRC[places[0] : places[-1] + 1] if whole else self.momentum_BRC[places]
        ahead_BRC = self.momentum_BRC.new_empty(len(indices), *self.momentum_BRC.shape[1:])
        for ahead_RC, index in zip(ahead_BRC, indices, strict=True):
            gradient, momentum = self._taken.get(index), self.momentum(index)
            if gradient is None:
                ahead_RC.copy_(momentum)
            elif group["momentum_form"] == "sum":
                torch.add(gradient, momentum, alpha=group["momentum"], out=ahead_RC)
            else:
                torch.lerp(gradient, momentum, group["momentum"], out=ahead_RC)
        return ahead_BRC

    def move(self, group: dict[str, Any], indices: Sequence[int], orthogonal: list[Tensor]) -> None:
        """Decays these parameters and moves them against their orthogonalised matrices, in any floating-point dtype."""
        if not indices:
            return
        parameters = [local(self.parameters[index]) for index in indices]
        kept = 1 - group["lr"] * group["weight_decay"]
        scale = group["lr"] * shape_scale(group["lr_scale"], self.rows, self.columns)
        if self.backend in TRITON_DTYPES:
            from muloco_runner.optimizers.buckets.fused import can_be_fused, move

            if can_be_fused(parameters):
                move(parameters, orthogonal, kept, scale)
                return
        if kept != 1:
            torch._foreach_mul_(parameters, kept)
        torch._foreach_add_(parameters, [o.to(self.dtype) for o in orthogonal], alpha=-scale)


def polynomial_of(group: dict[str, Any]) -> Polynomial:
    """The polynomial that a group names."""
    return named_polynomial(group["coefficients"], group["num_iterations"])
